"""Leaves out of the final prompt what a margin repeats: a sentence that an earlier margin holds and its own chunk does not.

Nothing marks where a chunk begins in the cache, so a model may copy a sentence that stands before its chunk. Listed twice,
it reads as if it had happened twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from wim.chunks import SENTENCE_END, Chunk
from wim.prompts import one_line

SHORT = 6  # characters: what is shorter may be an abbreviation or a number, whose full stop ends no sentence


def without_repeats(margins: Iterable[tuple[str, Chunk]]) -> Iterator[str]:
    """The margins, each with the chunk that it is about, in the order of the document.

    A sentence that an earlier margin holds word for word is left out, unless the chunk itself says it again or it is SHORT;
    a margin of which nothing else is left is left out whole.
    """
    known: set[str] = set()
    for margin, chunk in margins:
        written, read = sentences(margin), one_line(chunk.text)
        kept = [sentence for sentence in written if sentence not in known or sentence in read or len(sentence) < SHORT]
        only_scraps = len(kept) < len(written) and all(sentence in known and sentence not in read for sentence in kept)
        known.update(written)
        if kept and not only_scraps:
            yield " ".join(kept)


def sentences(text: str) -> list[str]:
    """The sentences of a text, each on one line."""
    text, start, found = one_line(text), 0, []
    for end in [match.end() for match in SENTENCE_END.finditer(text)] + [len(text)]:
        if sentence := text[start:end].strip():
            found.append(sentence)
        start = end
    return found
