"""Text files that a person names: a document, an example, prompts, books, records."""

from __future__ import annotations

import codecs
import sys
from pathlib import Path

from model.errors import InputError

MOST = 2**30  # bytes of one file; some devices have no end
PDF = b"%PDF-"  # how one begins, of which every byte may be text


def read_text(path: str | Path, what: str = "The file") -> str:
    """The UTF-8 text of a file, without its byte order mark; `-` in place of a path is for `read_stdin`.

    what: the file is, as sentences about it begin
    Raises InputError for a file that is absent, not text, or has no end.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MOST + 1)
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read ({error.strerror}); check its path.") from None
    return _decoded(data, f"{what} {path}")


def read_stdin() -> str:
    """The UTF-8 text of the standard input. Raises InputError as `read_text`."""
    if sys.stdin is None:
        raise InputError("The standard input is closed; give a file.")
    return _decoded(sys.stdin.buffer.read(MOST + 1), "The standard input")


def _decoded(data: bytes, source: str) -> str:
    if len(data) > MOST:
        raise InputError(f"{source} is longer than {MOST:,} bytes; give a shorter one.")
    if data.startswith(PDF):
        raise InputError(f"{source} is a PDF; give its text, as pdftotext writes it.")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{source} is UTF-16 text; save it as UTF-8.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 text (byte {error.start}); convert it first.") from None
