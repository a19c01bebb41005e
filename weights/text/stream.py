"""Ids to text while they are still coming: characters appear when their last byte has arrived."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class TextStream:
    """Decodes ids one by one; the pieces that `put` and `flush` return, joined, are the text of all ids.

    token_bytes: the UTF-8 bytes of an id
    strip_space: leave out one space at the very start
    """

    def __init__(self, token_bytes: Callable[[int], bytes], strip_space: bool):
        self._token_bytes = token_bytes
        self._strip_space = strip_space
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def put(self, token_id: int) -> str:
        """The characters that this id completes; bytes that can be part of no character give U+FFFD."""
        return self._strip(self._decoder.decode(self._token_bytes(token_id)))

    def flush(self) -> str:
        """What is left of a character that was never completed, as U+FFFD."""
        return self._strip(self._decoder.decode(b"", final=True))

    def _strip(self, text: str) -> str:
        if text and self._strip_space:
            self._strip_space = False
            text = text.removeprefix(" ")
        return text
