"""scripts/cli/documents.py: what a document is made of."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from cli.documents import read_document, read_piped

from model import InputError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Texts, and all that is not read: hidden, binary, blank, a pipe."""
    monkeypatch.chdir(tmp_path)
    for name, text in {"b.txt": "Bread.\n", "a/z.md": "Zoo.", "a/y.py": "y = 1\n", "blank.txt": " \n"}.items():
        path = tmp_path / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "src" / "weights.bin").write_bytes(b"PK\0\0")
    (tmp_path / "src" / "latin.txt").write_bytes("Käse".encode("latin-1"))
    (tmp_path / "src" / ".secret").write_text("hush")
    (tmp_path / "src" / ".cache").mkdir()
    (tmp_path / "src" / ".cache" / "more").write_text("hush")
    os.mkfifo(tmp_path / "src" / "pipe")
    return tmp_path / "src"


ALL = "File: src/a/y.py\n\ny = 1\n\n\nFile: src/a/z.md\n\nZoo.\n\nFile: src/b.txt\n\nBread.\n"


def test_one_file_is_its_text(folder):
    found = read_document(["src/b.txt"])
    assert (found.text, str(found)) == ("Bread.\n", "src/b.txt")


def test_a_folder_is_its_text_files_in_the_order_of_their_paths(folder):
    found = read_document(["src/"])
    assert found.text == ALL
    assert str(found) == "src/ (3 files, 4 hidden or binary skipped)"
    read = {part.name: found.text[part.start : part.end] for part in found.parts}
    assert read == {"src/a/y.py": "y = 1\n", "src/a/z.md": "Zoo.", "src/b.txt": "Bread.\n"}


def test_several_files_are_headed_by_their_paths(folder):
    found = read_document(["src/b.txt", "src/a"])
    assert found.text == "File: src/b.txt\n\nBread.\n\n\nFile: src/a/y.py\n\ny = 1\n\n\nFile: src/a/z.md\n\nZoo."
    assert str(found) == "src/b.txt, src/a (3 files)"
    assert str(read_document(["src/b.txt"] * 9)) == "src/b.txt, src/b.txt, 7 more (9 files)"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_what_git_ignores_is_left_out(folder, monkeypatch):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    subprocess.run(["git", "init", "-q", "."], cwd=folder, check=True)
    (folder / ".gitignore").write_text("*.md\nbuild/\n")
    (folder / "build").mkdir()
    (folder / "build" / "out.txt").write_text("Made.")
    (folder / "inner").mkdir()
    (folder / "inner" / "of.txt").write_text("A repository of its own.")
    subprocess.run(["git", "init", "-q", "inner"], cwd=folder, check=True)
    ran = folder.parent / "ran"  # whatever came with the documents is data
    subprocess.run(["git", "config", "core.fsmonitor", f"touch {ran}; false"], cwd=folder, check=True)
    text = read_document(["src"]).text
    assert [line for line in text.splitlines() if line.startswith("File:")] == [
        "File: src/a/y.py",
        "File: src/b.txt",
        "File: src/inner/of.txt",
    ]
    assert not ran.exists()
    assert read_document(["src/build"]).text == "File: src/build/out.txt\n\nMade."  # asked for by its name


def test_the_headings_are_what_is_in_no_file(folder):
    found = read_document(["src"])
    assert [found.text[start:end].strip() for start, end in found.headings] == [
        f"File: {part.name}" for part in found.parts
    ]
    alone = read_document(["src/b.txt"])
    assert [alone.text[start:end] for start, end in alone.headings] == [""]


def test_a_binary_file_that_is_named_is_refused(folder, monkeypatch):
    with pytest.raises(InputError, match="The file src/weights.bin is binary"):
        read_document(["src/b.txt", "src/weights.bin"])
    with (folder / "weights.bin").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(InputError, match="The standard input is binary"):
            read_document(["-"])


def test_a_pdf_is_no_text_though_all_its_bytes_may_be(folder):
    before = read_document(["src"])
    (folder / "a.pdf").write_text("%PDF-1.4\n1 0 obj\n", encoding="utf-8")
    found = read_document(["src"])
    assert (found.text, found.skipped) == (before.text, before.skipped + 1)
    with pytest.raises(InputError, match="The file src/a.pdf is a PDF; give its text, as pdftotext writes it"):
        read_document(["src/a.pdf"])


def test_a_folder_without_text_is_refused(folder):
    with pytest.raises(InputError, match="src/.cache/empty has no text files"):
        (folder / ".cache" / "empty").mkdir()
        read_document(["src/.cache/empty"])


@pytest.mark.parametrize(
    "piped, text", [(b"Mary went home.", "Mary went home."), (b" \n", None), (b"", None), (b"\f\f", "\f\f")]
)
def test_what_is_piped_in_is_the_document(piped, text, monkeypatch, capsys):
    reading, writing = os.pipe()
    os.write(writing, piped)
    os.close(writing)
    with open(reading, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        found = read_piped()
    assert (found and found.text) == text
    assert ("The standard input is empty" in capsys.readouterr().err) == (found is None)


def test_what_is_no_file_of_a_persons_is_passed_over_in_silence(monkeypatch, capsys):
    with open(os.devnull) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert read_piped() is None and capsys.readouterr().err == ""


def test_an_idle_pipe_is_not_waited_for(monkeypatch, capsys):
    monkeypatch.setattr("cli.documents.PATIENCE", 0.01)
    reading, writing = os.pipe()
    with open(reading, encoding="utf-8") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert read_piped() is None
    os.close(writing)
    assert "Nothing comes from the standard input" in capsys.readouterr().err


def test_nobody_pipes_anything(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert read_piped() is None
