"""What the READMEs name is there, and the first of them stays short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "model" / "README.md", *sorted((ROOT / "scripts").rglob("README.md"))]
IN_PROSE = re.compile(r"`([\w./-]+(?:\.(?:py|md|txt)|/))`")  # a file or a folder/ in backquotes
IN_COMMANDS = re.compile(r"(?:^|[\s(\"])((?:scripts|model|wim|weights|tests)/[\w./-]+\.(?:py|md|txt))")


def named_paths(text):
    return sorted({*IN_PROSE.findall(text), *IN_COMMANDS.findall(text)})


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_path_that_a_readme_names_exists(readme):
    """Seen from the repository's root, as the commands are, or from the README's own folder."""
    names = named_paths(readme.read_text(encoding="utf-8"))
    assert len(names) > 5
    assert [name for name in names if not (ROOT / name).exists() and not (readme.parent / name).exists()] == []


def test_the_readme_is_read_in_one_sitting():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 160
