"""Underlines: the sentences that a question makes the model look at, word for word. A reader does not only write margins.

From the end of each chunk the question is read, as a branch, and so is an empty one ("N/A"). What the tokens of the first
look at more than those of the second scores each sentence of the chunk (in-context re-ranking, arXiv 2410.02642; here the
heads count alone, see model.attention_mass.contrast). The best sentences of the document become notes. That takes no decode
step, invents nothing, and every note has its place and a score.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from model.attention_mass import contrast
from wim.chunks import Chunk, Sentence
from wim.events import Event, Margin, MarginDone
from wim.prompt_ids import EMPTY

if TYPE_CHECKING:
    from wim.loop import WiM

LEAST_SHARE = 0.12  # of the document's highest score: a sentence with less is not relevant


def underline(wim: WiM, query: str) -> Generator[Event, None, list[Margin]]:
    """Read the document, then say which sentences to look at: Settings.underlines of them, in the document's order.

    Yields events; returns the sentences as margins. Works on a document that has been read before as well.
    """
    for chunk in wim.desk.until_stopped(wim.plan.chunks):
        yield from wim.desk.read(chunk)
    with wim.desk.meter.timed("margins"):
        scored = scores(wim, query, wim.plan.chunks[: len(wim.desk.chunk_ends)])
    said = [found for found in scored if found[1].text]  # not blank lines
    best = sorted(said, key=lambda found: -found[2])[: wim.settings.underlines]
    margins = []
    for chunk, sentence, score in sorted(best, key=lambda found: found[1].start):
        share = score / best[0][2] if best[0][2] > 0 else 0.0
        margin = Margin(chunk.index, sentence.start, sentence.end, sentence.text, share >= LEAST_SHARE, score=share)
        margins.append(margin)
        yield MarginDone(margin)
    return margins


def scores(wim: WiM, query: str, chunks: list[Chunk]) -> list[tuple[Chunk, Sentence, float]]:
    """Each sentence of the chunks with its score, a few chunks at a time. The cache's length does not change."""
    first, found = len(wim.prompts.header), []
    asked = [wim.prompts.look(query), wim.prompts.look(EMPTY)]
    prompts, watched = zip(*asked, strict=True)
    for at in range(0, len(chunks), wim.plan.look_chunks):
        part = chunks[at : at + wim.plan.look_chunks]
        borders = [[first + chunk.start, *(first + sentence.end for sentence in chunk.sentences)] for chunk in part]
        masses = wim.session.attention(
            [wim.desk.chunk_ends[chunk.index] for chunk in part for _ in asked],
            prompts * len(part),
            watched * len(part),
            [row for row in borders for _ in asked],
        )
        for chunk, mass, baseline in zip(part, masses[::2], masses[1::2], strict=True):
            for sentence, score in zip(chunk.sentences, contrast(mass, baseline), strict=True):
                found.append((chunk, sentence, score / max(1, len(sentence.text)) ** 0.5))  # long ones get more by chance
    return found
