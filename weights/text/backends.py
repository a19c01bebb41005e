"""Plain text to ids and back: the interface of the two kinds of vocabulary file.

A backend knows the vocabulary that was learnt from text, and no control tokens: whatever the text says, it is text. What
control tokens there are, and where they may be written, is the business of tokenizer.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

Ids = list[int]
Spans = list[tuple[int, int]]

SPACE = "▁"  # how SentencePiece vocabularies write a space
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # and a byte


@dataclass(frozen=True)
class AddedToken:
    """A token that stands outside of the learnt vocabulary.

    special: as published; not every control token is marked so (Phi-3's `</s>` is not)
    lstrip, rstrip: where a template writes the token, it takes the white space before, or after it, with it
    """

    content: str
    id: int
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False

    @property
    def is_control(self) -> bool:
        return self.special or (self.content[0] == "<" and self.content[-1] == ">")


class TextBackend(Protocol):
    """Text to ids and ids to bytes.

    size: ids of the learnt vocabulary are in [0, size)
    unk_id: what stands for characters that the vocabulary cannot write; None when it can write all
    first_id: the BOS that the tokenizer puts before a text unless told not to; None for none
    added_tokens: those that the vocabulary file lists
    prefix_at_start, prefix_after_control: SentencePiece vocabularies read the first word of a text as if a space stood
        before it; the flags say whether that is so at the start of a prompt, and right after a control token
    strips_space: a decoded text gives that space up again
    """

    size: int
    unk_id: int | None
    first_id: int | None
    added_tokens: list[AddedToken]
    prefix_at_start: bool
    prefix_after_control: bool
    strips_space: bool

    def encode(self, text: str, prefix: bool) -> tuple[Ids, Spans]:
        """Ids of a text and, for each, the characters [start, end) that it stands for.

        prefix: read the first word as if a space stood before it, where the vocabulary has that custom
        """
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
