"""Faster ways to the margins of wim/loop.py: those of several chunks together, and verdicts that ride along.

Each takes a question, yields events, and returns the margins, as WiM.one_by_one does.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from functools import partial
from typing import TYPE_CHECKING

from wim.chunks import Chunk
from wim.events import Event, Margin, MarginDone, MarginToken
from wim.verdict import says_nothing

if TYPE_CHECKING:
    from wim.loop import WiM


def together(wim: WiM, query: str) -> Generator[Event, None, list[Margin]]:
    """Write the margins of a window of chunks, once these are read, as rows of one batch."""
    margins = []
    for window in wim.plan.margin_windows():
        read = []
        for chunk in wim.desk.until_stopped(window):
            yield from wim.desk.read(chunk)
            read.append(chunk)
        if read and wim.plan.margin_tokens[read[0].index]:
            written = yield from write_margins(wim, query, read)
            yield from wim.judge(query, written)
            margins += written
    return margins


def write_margins(wim: WiM, query: str, chunks: list[Chunk]) -> Generator[Event, None, list[Margin]]:
    """A branch for each chunk, which sees the cache up to the end of it. The cache's length does not change.

    chunks: whose margins may become equally long
    """
    desk = wim.desk
    steps = wim.session.branch(
        [desk.chunk_ends[chunk.index] for chunk in chunks],
        [wim.prompts.margin(query, chunk.beginning) for chunk in chunks],
        wim.plan.margin_tokens[chunks[0].index],
        wim.prompts.stop_ids,
        desk.sampler,
    )
    texts = yield from desk.write("margins", steps, [partial(MarginToken, chunk.index) for chunk in chunks])
    return [Margin.on(chunk, text) for chunk, text in zip(chunks, texts, strict=True)]


def riding_along(wim: WiM, query: str) -> Generator[Event, None, list[Margin]]:
    """Write one margin at a time; each is judged in the forward pass that reads the next chunk."""
    desk, margins = wim.desk, []
    rides: Margin | None = None  # its verdict rides along with the next chunk
    for chunk in desk.until_stopped(wim.plan.chunks):
        if rides is not None:
            yield from _read_and_judge(wim, query, chunk, rides)
            rides = None
        yield from desk.read(chunk)
        if not wim.plan.margin_tokens[chunk.index]:
            continue
        margin = yield from wim.write_margin(query, chunk)
        yield from desk.rollback()
        margins.append(margin)
        more_to_read = chunk.index + 1 == len(desk.chunk_ends) < len(wim.plan.chunks) and not desk.stopped
        if more_to_read and not says_nothing(margin.text):
            rides = margin
        else:
            yield from wim.judge(query, [margin])
    if rides is not None:  # somebody stopped
        yield from wim.judge(query, [rides])
    return margins


def _read_and_judge(wim: WiM, query: str, chunk: Chunk, margin: Margin) -> Iterator[Event]:
    desk = wim.desk
    with desk.meter.timed("prefill"):
        probability, n_tokens = wim.classifier.judge_while_reading(query, margin.text, wim.session, chunk.ids)
        wim.session.synchronize()
    desk.meter.tokens["verdicts"] += n_tokens
    margin.judged(probability, wim.settings.threshold)
    yield MarginDone(margin)
    desk.chunk_ends.append(wim.session.length)
    yield desk.was_read(chunk)
