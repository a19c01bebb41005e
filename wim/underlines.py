"""Underlines: the sentences that a question makes the model look at, word for word. A reader does not only write margins.

From the end of each chunk the question is read, as a branch, and so is an empty one ("N/A"). Head by head, each token of
the question is compared with those of the empty one, and a sentence gets the score of the token that looks at it most.
(In-context re-ranking, arXiv 2410.02642, adds up heads and tokens before it compares; see model/attention_mass.py.) The
best sentences of the document become notes. That takes no decode step, invents nothing, and every note has its place and a
score.

Summed over its tokens, a long question looks at everything a little, and the few tokens of "N/A" do not make up for that.
With the token that looks most, the first six sentences hold more of the facts, and their scores tell facts from the rest
better: scripts/README.md has the figures, and those of other rules.
"""

from __future__ import annotations

from collections.abc import Generator
from itertools import islice
from typing import TYPE_CHECKING

from wim.chunks import Chunk, Sentence
from wim.events import Event, Margin, MarginDone
from wim.prompt_ids import EMPTY

if TYPE_CHECKING:
    from wim.loop import WiM

LEAST_SHARE = 0.25  # of the document's highest score: a sentence with less is not relevant


def underline(wim: WiM, query: str) -> Generator[Event, None, list[Margin]]:
    """Read the document, then say which sentences to look at: Settings.underlines of them, in the document's order.

    Yields events; returns the sentences as margins. Works on a document that has been read before as well.
    """
    for chunk in wim.desk.until_stopped(wim.plan.chunks):
        yield from wim.desk.read(chunk)
    with wim.desk.meter.timed("margins"):
        scored = scores(wim, query, wim.plan.chunks[: len(wim.desk.chunk_ends)])
    ranked = sorted(scored, key=lambda found: -found[2])
    best = list(islice((found for found in ranked if _says_something(wim, found[1])), wim.settings.underlines))
    margins = []
    for chunk, sentence, score in sorted(best, key=lambda found: found[1].start):
        share = score / best[0][2] if best[0][2] > 0 else 0.0
        margin = Margin(chunk.index, sentence.start, sentence.end, sentence.text, share >= LEAST_SHARE, score=share)
        margins.append(margin)
        yield MarginDone(margin)
    return margins


def _says_something(wim: WiM, sentence: Sentence) -> bool:
    """Neither a lone bracket, nor a blank line, nor a heading of the caller's own."""
    return any(map(str.isalnum, sentence.text)) and not any(
        start <= sentence.text_start < end for start, end in wim.headings
    )


def scores(wim: WiM, query: str, chunks: list[Chunk]) -> list[tuple[Chunk, Sentence, float]]:
    """Each sentence of the chunks with its score, a few chunks at a time. The cache's length does not change."""
    first, found = len(wim.prompts.header), []
    question, empty = wim.prompts.look(query), wim.prompts.look(EMPTY)
    for at in range(0, len(chunks), wim.plan.look_chunks):
        part = chunks[at : at + wim.plan.look_chunks]
        ends = [wim.desk.chunk_ends[chunk.index] for chunk in part]
        borders = [[first + chunk.start, *(first + sentence.end for sentence in chunk.sentences)] for chunk in part]
        for chunk, more in zip(part, wim.session.attention(ends, question, empty, borders), strict=True):
            for sentence, score in zip(chunk.sentences, more, strict=True):
                found.append((chunk, sentence, score / max(1, len(sentence.text)) ** 0.5))  # long ones get more by chance
    return found
