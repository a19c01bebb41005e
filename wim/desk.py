"""A session at work on one document: each verb yields what happens (wim/events.py) and counts its seconds and tokens."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence

from model.sampling import Sampler
from weights.text.thoughts import ThoughtFilter, without_thoughts
from wim.budget import Plan
from wim.chunks import Chunk
from wim.contracts import Session
from wim.events import ChunkRead, Event, Rollback, Tell
from wim.meter import Meter


class Desk:
    """How far the document has been read, and the steps that every pattern is made of.

    chunk_ends: the cache's length after each of the document's chunks, as far as they are read
    stopped: no further chunk is to be read
    meter, sampler: of the question at hand
    """

    def __init__(self, plan: Plan, session: Session):
        self.plan, self.session, self.settings, self.prompts = plan, session, plan.settings, plan.prompts
        self.chunk_ends: list[int] = []
        self.stopped = False

    def begin(self) -> None:
        """Begin another question: nothing counted yet, a fresh sampler. Before the first, the header is read."""
        self.meter = Meter()
        self.sampler = Sampler(self.settings.temperature, self.settings.top_p, self.settings.seed)
        if self.session.length == 0 and self.prompts.header:  # some chat formats have none
            with self.meter.timed("prefill"):
                self.session.prefill(self.prompts.header)

    def until_stopped(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """These chunks; once stopped, only those that have been read, or the document's first if none has."""
        for chunk in chunks:
            if self.stopped and 0 < len(self.chunk_ends) <= chunk.index:
                return
            yield chunk

    def read(self, chunk: Chunk) -> Iterator[Event]:
        """Prefill the document's next chunk; nothing happens where an earlier question had it read."""
        if chunk.index == len(self.chunk_ends):
            event = self.prefill(chunk)
            self.chunk_ends.append(self.session.length)
            yield event

    def prefill(self, chunk: Chunk) -> ChunkRead:
        """Read a chunk after whatever the cache holds."""
        with self.meter.timed("prefill"):
            self.session.prefill(chunk.ids)
            self.session.synchronize()
        return self.was_read(chunk)

    def was_read(self, chunk: Chunk) -> ChunkRead:
        """Count a chunk that has been read, and say so."""
        self.meter.tokens["document"] += len(chunk.ids)
        return ChunkRead(chunk.index, len(self.plan.chunks), len(chunk.ids), self.session.length)

    def generate(self, phase: str, prompt: list[int], max_tokens: int, event: Tell) -> Generator[Event, None, str]:
        """Read a prompt and write the reply, which is returned. What it takes in the cache stays there."""
        tokens = self.session.generate(prompt, max_tokens, self.prompts.stop_ids, self.sampler)
        [text] = yield from self.write(phase, ([token] for token in tokens), [event])
        return text

    def write(self, phase: str, steps: Iterable[list[int | None]], events: Sequence[Tell]) -> Generator[Event, None, list]:
        """Replies that grow side by side, as texts. Each step has a token for every reply, or None where it has ended.

        What a model thinks aloud is neither told by an event nor returned.
        """
        filters = [ThoughtFilter() for _ in events]
        streams = [self.prompts.tokenizer.stream() for _ in events]
        texts = ["" for _ in events]

        def grow(row: int, text: str) -> Iterator[Event]:
            texts[row] += text
            if outside := filters[row].put(text):
                yield events[row](outside)

        for tokens in self.meter.steps(phase, steps):
            for row, token in enumerate(tokens):
                if token is not None:
                    self.meter.tokens[phase] += 1
                    yield from grow(row, streams[row].put(token))
        for row, stream in enumerate(streams):
            yield from grow(row, stream.flush())
            if rest := filters[row].flush():
                yield events[row](rest)
        return [without_thoughts(text) for text in texts]

    def rollback(self) -> Iterator[Event]:
        """Roll back to the end of what has been read of the document: of its last chunk, or of the header."""
        yield from self.rollback_to(self.chunk_ends[-1] if self.chunk_ends else len(self.prompts.header))

    def rollback_to(self, length: int) -> Iterator[Event]:
        """Roll back to a length, and say so if that moves the pointer."""
        if (old := self.session.length) != length:
            self.session.rollback(length)
            yield Rollback(old, length)

    def forget_document(self) -> Iterator[Event]:
        """Roll back to the end of the header."""
        self.chunk_ends = []
        yield from self.rollback()
