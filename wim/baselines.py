"""What the paper compares with: `llm` reads the whole document, then the question; `rag` only the relevant chunks.

A pattern is a function that yields the events of one question.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from wim.events import ChunkJudged, Event

if TYPE_CHECKING:
    from wim.loop import WiM


def llm(wim: WiM, query: str) -> Iterator[Event]:
    """Read every chunk, then the question."""
    for chunk in wim.desk.until_stopped(wim.plan.chunks):
        yield from wim.desk.read(chunk)
    yield from wim.finish(wim.prompts.answer(query), len(wim.desk.chunk_ends))


def rag(wim: WiM, query: str) -> Iterator[Event]:
    """Judge each chunk alone, then read only the relevant ones; the most probable one if none is."""
    if query not in wim.relevance:
        yield from judge_chunks(wim, [query])
    yield from wim.desk.forget_document()
    probabilities = wim.relevance[query]
    least = min(wim.settings.threshold, max(probabilities))
    chosen = [chunk for chunk, p in zip(wim.plan.chunks, probabilities, strict=False) if p >= least]
    for chunk in chosen:
        yield wim.desk.prefill(chunk)
    yield from wim.finish(wim.prompts.answer(query), len(chosen))


def judge_chunks(wim: WiM, queries: list[str]) -> Iterator[Event]:
    """See WiM.judge_chunks."""
    desk, prompts = wim.desk, [wim.prompts.relevance(query) for query in queries]
    found: list[list[float]] = []  # for each chunk, the probabilities for all questions
    # After a stop, as many chunks are judged as for the questions before.
    n_wanted = min(map(len, wim.relevance.values()), default=1) if desk.stopped else 1
    yield from desk.forget_document()
    for chunk in wim.plan.chunks:
        if desk.stopped and chunk.index >= n_wanted:
            break
        with desk.meter.timed("verdicts"):
            wim.session.prefill(chunk.ids)
            probabilities = wim.session.probability(prompts, wim.prompts.yes, wim.prompts.no)
        desk.meter.tokens["verdicts"] += len(chunk.ids) + sum(map(len, prompts))
        found.append(probabilities)
        for probability in probabilities:
            relevant = probability >= wim.settings.threshold
            yield ChunkJudged(chunk.index, len(wim.plan.chunks), len(chunk.ids), relevant, probability)
        yield from desk.rollback()
    wim.relevance |= {query: list(row) for query, row in zip(queries, zip(*found, strict=True), strict=True)}
