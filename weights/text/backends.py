"""Plain text to ids and back: the interface of the two kinds of vocabulary file.

A backend knows the vocabulary that was learnt from text, and only those added tokens that it is given. tokenizer.py decides
which of them are control tokens, and where they may be written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from model.errors import InputError
from weights.text.added_tokens import AddedToken

Ids = list[int]
Spans = list[tuple[int, int]]

SPACE = "▁"  # how SentencePiece vocabularies write a space
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # and a byte


class Reader(Protocol):
    """Reads text with some of the added tokens, and with no others."""

    def encode(self, text: str, prefix: bool) -> tuple[Ids, Spans]:
        """Ids of a text and, for each, the characters [start, end) that it stands for.

        prefix: read the first word as if a space stood before it, where the vocabulary has that custom
        Raises InputError for a text that the vocabulary cannot read.
        """
        ...


class TextBackend(Protocol):
    """Text to ids and ids to bytes.

    size: ids of the learnt vocabulary are in [0, size)
    unk_id: what stands for characters that the vocabulary cannot write; None when it can write all
    first_id: the BOS that the tokenizer puts before a text unless told not to; None for none
    added_tokens: those that the vocabulary file lists
    lists_flags: the file says all about them, so that no other has to be asked
    prefix_at_start, prefix_after_control: SentencePiece vocabularies read the first word of a text as if a space stood
        before it; the flags say whether that is so at the start of a prompt, and right after a control token
    strips_space: a decoded text gives that space up again
    """

    size: int
    unk_id: int | None
    first_id: int | None
    added_tokens: list[AddedToken]
    lists_flags: bool
    prefix_at_start: bool
    prefix_after_control: bool
    strips_space: bool

    def reader(self, tokens: Iterable[AddedToken]) -> Reader:
        """What reads text with these added tokens."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes that a token stands for, often a part of a character; none for an id out of range."""
        ...

    def token_id(self, content: str) -> int | None:
        """The id of a piece of the vocabulary, None for no such piece."""
        ...


def piece_bytes(piece: str) -> bytes:
    """What a SentencePiece piece stands for."""
    byte = BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode()


@contextmanager
def sentence(text: str) -> Iterator[None]:
    """Whatever a library raises becomes an InputError: `text`, with the library's words at its `{}`."""
    try:
        yield
    except (InputError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # panics of Rust code derive from BaseException
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(text.replace("{}", words.encode(errors="replace").decode())) from None


@contextmanager
def without_stderr() -> Iterator[None]:
    """Rust and C++ code write to stderr by themselves before they raise; that is nobody's sentence."""
    try:
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    except OSError:  # closed
        yield
        return
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
