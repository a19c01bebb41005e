"""Where a margin's words stand: in which file of the document, on which lines, on which page.

sources = Sources(document, wim.plan.chunks)
sources.of(margin)       a list of Place: of the sentence that it underlines or quotes word for word, else of its chunk
sources.name(margin)     the same in words: `cache.py:40-66`, or `paper.txt page 3` where form feeds mark pages
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from cli.documents import Document, Part
from wim.chunks import Chunk
from wim.events import Margin
from wim.notes import sentences
from wim.verdict import says_nothing

MOST_NAMED = 3  # files in one name
AROUND = " \t\n\"'“”„«»‘’*_`•-–—"  # what a model may put around a quotation


class Place(NamedTuple):
    """Some lines of a file.

    file: its path, as it was given or below the folder that was given
    lines: the first and the last, counted from 1
    pages: the first and the last, counted from 1; None for a file without form feeds
    """

    file: str
    lines: tuple[int, int]
    pages: tuple[int, int] | None = None


class Sources:
    """The places of one document.

    document: with its text and its files (cli/documents.py); of a text alone, `Document(text, name)`
    chunks: this text, cut (`wim.plan.chunks`)
    """

    def __init__(self, document: Document, chunks: Sequence[Chunk]):
        self.text, self.files, self.chunks = document.text, document.parts, chunks
        self.ends = [file.end for file in self.files]
        self.newlines, self.feeds = ([match.start() for match in re.finditer(mark, self.text)] for mark in ("\n", "\f"))
        self.folder = _common_folder([file.name for file in self.files])

    def of(self, margin: Margin) -> list[Place]:
        """Nothing for a note that somebody wrote by hand: it is about the whole."""
        return [place for span in self.spans(margin) for place in self.places(*span)]

    def name(self, margin: Margin) -> str:
        return self.named(self.of(margin))

    def of_chunk(self, index: int) -> list[Place]:
        return self.of_chunks(index, index)

    def of_chunks(self, first: int, last: int) -> list[Place]:
        """Of a run of chunks."""
        return self.places(self.chunks[first].text_start, self.chunks[last].text_end)

    def named(self, places: Sequence[Place]) -> str:
        """Places in words, each file by its path below the folder that all have in common; empty for none."""
        names, files = [], dict.fromkeys(place.file for place in places)
        for path in files:
            name = os.path.relpath(path, self.folder) if self.folder else path
            found = [place for place in places if place.file == path]
            if found[0].pages is None:
                names.append(f"{name}:{_listed(place.lines for place in found)}")
            else:
                pages = _listed(place.pages for place in found)
                names.append(f"{name} page{'' if pages.isdecimal() else 's'} {pages}")
        if (n_more := len(names) - MOST_NAMED) > 0:
            names[MOST_NAMED - 1 :] = [f"{n_more + 1} files more"]
        return ", ".join(names)

    def places(self, start: int, end: int) -> list[Place]:
        """Of the characters [start, end) of the document, without the white space at their ends: one for each file."""
        found, at = [], min(bisect_right(self.ends, start), len(self.files) - 1)
        for file in self.files[at:]:
            if file.start >= end:
                break
            first = max(start, file.start)
            piece = self.text[first : min(end, file.end)]
            if said := piece.strip():
                first += piece.index(said)
                found.append(self._place(file, first, first + len(said) - 1))
        if not found:  # a heading, or nothing but white space
            first = max(self.files[at].start, min(start, self.files[at].end - 1))
            found.append(self._place(self.files[at], first, first))
        return found

    def _place(self, file: Part, first: int, last: int) -> Place:
        """Of two characters of the document within a file."""

        def numbers(marks: list[int]) -> tuple[int, int]:
            before = bisect_left(marks, file.start)
            return 1 + bisect_left(marks, first) - before, 1 + bisect_left(marks, last) - before

        paged = bisect_left(self.feeds, file.start) < bisect_left(self.feeds, file.end)
        return Place(file.name, numbers(self.newlines), numbers(self.feeds) if paged else None)

    def spans(self, margin: Margin) -> list[tuple[int, int]]:
        """The characters that a margin is about."""
        if margin.by_hand:
            return []
        chunk = self.chunks[margin.chunk]
        own = [(s.text_start, s.text_start + len(s.text)) for s in chunk.sentences if s[:2] == (margin.start, margin.end)]
        if margin.score is not None and own:
            return own
        return list(_quotations(margin.text, chunk)) or own or [(chunk.text_start, chunk.text_end)]


def _quotations(margin: str, chunk: Chunk) -> Iterator[tuple[int, int]]:
    """Where the chunk says what the margin says: all of it, else each of its sentences. Nothing if that is not plain."""
    if says_nothing(margin):
        return
    for quoted in ([margin], sentences(margin)):
        found = [_only(quotation, chunk.text) for quotation in quoted]
        if all(found):
            yield from sorted((chunk.text_start + match.start(), chunk.text_start + match.end()) for match in found)
            return


def _only(quotation: str, text: str) -> re.Match[str] | None:
    """Where it stands in the text, its white space apart; None if that is nowhere, or in several places."""
    words = quotation.strip(AROUND).split()
    found = list(re.finditer(r"(?<!\w)" + r"\s+".join(map(re.escape, words)) + r"(?!\w)", text)) if words else []
    return found[0] if len(found) == 1 else None


def _listed(ranges: Iterable[tuple[int, int]]) -> str:
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in dict.fromkeys(ranges))


def _common_folder(names: list[str]) -> str:
    try:
        return os.path.commonpath([os.path.dirname(name) for name in names])
    except ValueError:  # some from the root, some from here
        return ""
