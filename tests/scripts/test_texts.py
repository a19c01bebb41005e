"""scripts/texts.py: files that a person names, and those that have no end."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import generate
import pytest
import texts
from tasks import read_examples

from model.errors import InputError

ENDLESS = Path("/dev/zero")


@pytest.mark.skipif(not ENDLESS.exists(), reason="a device that has no end")
@pytest.mark.parametrize(
    "read",
    [
        lambda: generate.read_input(SimpleNamespace(example=None, context=[str(ENDLESS)], query=["Who?"])),
        lambda: generate.read_input(SimpleNamespace(example=ENDLESS, context=None, query=None)),
        lambda: generate.reading_prompts(SimpleNamespace(prompts=ENDLESS), None),
        lambda: next(read_examples(ENDLESS)),
        lambda: texts.read_text(ENDLESS),
    ],
)
def test_a_file_without_an_end_gets_a_sentence(monkeypatch, read):
    monkeypatch.setattr(texts, "MOST", 10**6)
    with pytest.raises(InputError, match="/dev/zero is longer than 1,000,000 bytes; give"):
        read()


def test_an_input_without_an_end_gets_a_sentence(monkeypatch):
    monkeypatch.setattr(texts, "MOST", 100)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"y\n" * 50)))
    assert texts.read_stdin() == "y\n" * 50
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"y\n" * 51)))
    with pytest.raises(InputError, match="standard input is longer than 100 bytes"):
        texts.read_stdin()
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="standard input is closed"):
        texts.read_stdin()


def test_text_comes_as_it_is(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffMary\r\nwent é".encode())
    assert texts.read_text(tmp_path / "a.txt") == "Mary\r\nwent é"
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="b.txt is not UTF-8 text .byte 3."):
        texts.read_text(tmp_path / "b.txt")
    (tmp_path / "c.txt").write_text("Mary went home.", encoding="utf-16")
    with pytest.raises(InputError, match="c.txt is UTF-16 text; save it as UTF-8"):
        texts.read_text(tmp_path / "c.txt")
