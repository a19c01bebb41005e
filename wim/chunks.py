"""Cut a document into chunks at the ends of sentences, without losing a token.

The document is tokenized once, whole; a chunk is a range of those token ids. So the ids of the chunks, joined, are the ids
of the document, whatever the text looks like.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import NamedTuple

from wim.contracts import Tokenizer
from wim.prompts import one_line

PARAGRAPH_END = re.compile(r"\n\s*\n")
# Closing punctuation (with quotes or brackets after it) before white space; Chinese and Japanese full stops, which no space
# follows; the end of a paragraph.
SENTENCE_END = re.compile(r"""[.!?…]["'”’»)\]]*(?=\s)|[。！？｡]["'”’」』）]*|\n\s*\n""")
LINE_END = re.compile(r"\n")
BEGINNING_CHARS = 48
LONG_SENTENCE = 128  # tokens: what is longer is a list, a table or code


class Sentence(NamedTuple):
    """A sentence, or a line of what has none.

    start, end: its tokens are [start, end) of the document's tokens
    text: what they say, without outer spaces
    text_start: where that begins in the document's text
    """

    start: int
    end: int
    text: str
    text_start: int = 0


@dataclass(frozen=True)
class Chunk:
    """A range of the document.

    index: its number, from 0
    ids: its token ids
    start, end: its tokens are [start, end) of the document's tokens
    text_start, text_end: its characters are [text_start, text_end) of the document's text
    text: these characters
    sentences: its tokens once more, cut at the ends of sentences
    """

    index: int
    ids: list[int]
    start: int
    end: int
    text_start: int
    text_end: int
    text: str
    sentences: tuple[Sentence, ...] = ()

    @property
    def beginning(self) -> str:
        """Its first words on one line, by which a prompt can name it: at most BEGINNING_CHARS characters."""
        line = one_line(self.text)
        if len(line) <= BEGINNING_CHARS:
            return line
        # The first few characters alone (the number of a chapter, say) would not name it; Chinese has no spaces.
        cut = line.rfind(" ", BEGINNING_CHARS // 3, BEGINNING_CHARS + 1)
        return line[: cut if cut > 0 else BEGINNING_CHARS]


def split_document(text: str, tokenizer: Tokenizer, chunk_tokens: int) -> list[Chunk]:
    """Cut `text` into chunks of at most `chunk_tokens` tokens.

    A chunk ends at the last end of a paragraph in its last eighth, else at the last end of a sentence that the budget
    reaches, else at that of a line, else (code or tables without any) at the budget itself.
    """
    ids, offsets = tokenizer.encode_with_offsets(text)
    token_starts = [start for start, _ in offsets]
    paragraphs, sentences, lines = (
        _tokens_before(pattern, text, token_starts) for pattern in (PARAGRAPH_END, SENTENCE_END, LINE_END)
    )

    chunks: list[Chunk] = []
    start, text_start = 0, 0
    while start < len(ids):
        budget = start + chunk_tokens
        if budget >= len(ids):
            end = len(ids)
        else:
            late = budget - chunk_tokens // 8
            end = (
                _last_cut(paragraphs, late, budget)
                or _last_cut(sentences, start, budget)
                or _last_cut(lines, start, budget)
                or budget
            )
        text_end = len(text) if end == len(ids) else max(offsets[end - 1][1], text_start)
        ends = _sentence_ends(sentences, lines, start, end)
        ranges = zip([start, *ends], ends, strict=False)
        parts = tuple(_sentence(a, b, text, token_starts[a], offsets[b - 1][1]) for a, b in ranges)
        part = text[text_start:text_end]
        chunks.append(Chunk(len(chunks), ids[start:end], start, end, text_start, text_end, part, parts))
        start, text_start = end, text_end
    return chunks


def _sentence(start: int, end: int, text: str, text_start: int, text_end: int) -> Sentence:
    """Of a range of tokens, and of the characters that they cover."""
    said = text[text_start:text_end]
    return Sentence(start, end, said.strip(), text_start + len(said) - len(said.lstrip()))


def _sentence_ends(sentences: list[int], lines: list[int], start: int, end: int) -> list[int]:
    """Where the sentences of [start, end) end. What is too long for one ends with its lines, and at last anywhere."""
    ends: list[int] = []
    for cut in [*sentences[bisect_right(sentences, start) : bisect_left(sentences, end)], end]:
        at = ends[-1] if ends else start
        while cut - at > LONG_SENTENCE:
            at = _last_cut(lines, at, at + LONG_SENTENCE) or at + LONG_SENTENCE
            ends.append(at)
        if cut > at:
            ends.append(cut)
    return ends


def _tokens_before(pattern: re.Pattern[str], text: str, token_starts: list[int]) -> list[int]:
    """For each match, how many tokens begin before its end; sorted, as matches are."""
    return [bisect_left(token_starts, match.end()) for match in pattern.finditer(text)]


def _last_cut(cuts: list[int], above: int, most: int) -> int | None:
    """The largest cut in (above, most]."""
    i = bisect_right(cuts, most)
    return cuts[i - 1] if i and cuts[i - 1] > above else None
