"""Where sentences end, in text as it is found in books: by rule, good enough to hide facts between them."""

from __future__ import annotations

import re

from tasks.document import Span

PARAGRAPH_BREAK = re.compile(r"\n[ \t]*\n\s*")
# The white space between two sentences: after . ! or ? (and closing quotes), before a capital; not after a title, nor
# after an initial.
SENTENCE_BREAK = re.compile(
    r"""(?:(?<=[.!?])|(?<=[.!?]["'”’)]))(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\b[A-Z]\.)"""
    r"""\s+(?=["'“‘(_]?[A-Z])"""
)


def split_sentences(text: str) -> list[str]:
    """The sentences of hard-wrapped text, each with the white space that follows it; line ends become spaces."""
    sentences: list[str] = []
    for paragraph in PARAGRAPH_BREAK.split(text.replace("\r\n", "\n").strip()):
        found = [" ".join(sentence.split()) for sentence in SENTENCE_BREAK.split(paragraph)]
        found = [sentence for sentence in found if sentence]
        if found:
            sentences += [sentence + " " for sentence in found[:-1]]
            sentences.append(found[-1] + "\n\n")
    return sentences


def sentence_around(text: str, start: int, end: int) -> Span:
    """The span of the sentence or sentences that characters [start, end) of the text belong to."""
    first, last = 0, len(text)
    for border in SENTENCE_BREAK.finditer(text):
        if border.end() <= start:
            first = border.end()
        elif border.start() >= end:
            last = border.start()
            break
    return first, last


def sentences_within(text: str, start: int, end: int) -> list[Span]:
    """The spans of the sentences of the characters [start, end), which begin and end with a sentence."""
    borders = list(SENTENCE_BREAK.finditer(text, start, end))
    starts, ends = [start, *(border.end() for border in borders)], [*(border.start() for border in borders), end]
    return [span for span in zip(starts, ends, strict=True) if span[0] < span[1]]
