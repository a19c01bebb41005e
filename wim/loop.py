"""Writing in the Margins (Russak et al. 2024, arXiv 2408.14906), the loop itself.

    read the header (the chat format's, and the words that open the prompt)
    for each chunk:                                   cache afterwards
        read the chunk                                [ header | chunk 1 | … | chunk i ]
        read the extraction prompt, write a margin    [ header | chunk 1 | … | chunk i | prompt | margin i ]
        roll back                                     [ header | chunk 1 | … | chunk i ]
        judge the margin on a second cache
    read the relevant margins and the question        [ header | chunk 1 | … | chunk N | margins, question ]
    write the answer
    roll back                                         [ header | chunk 1 | … | chunk N ]

After that the document is still there, and another question needs no other prefill. This module knows texts, chunks and the
order of events; tensors are the business of `model.session.Session`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from model.sampling import Sampler
from model.session import Session
from wim.budget import Plan
from wim.chunks import Chunk
from wim.events import AnswerToken, ChunkJudged, ChunkRead, Done, Event, Margin, MarginDone, MarginToken, Rollback
from wim.repeats import without_repeats
from wim.verdict import Classifier


class WiM:
    """One document and the questions asked about it.

    plan: the document in chunks, the settings and the prompts (wim/budget.py)
    session: the model, with a cache of at least plan.capacity positions
    classifier: judges margins; None keeps them all
    """

    def __init__(self, plan: Plan, session: Session, classifier: Classifier | None = None):
        self.plan, self.session, self.classifier = plan, session, classifier
        self.settings, self.prompts = plan.settings, plan.prompts
        self.chunk_ends: list[int] = []  # the cache's length after each chunk that has been read
        self.relevance: dict[str, list[float]] = {}  # pattern `rag`: for a question, the probability of each chunk
        self.stopped = False
        self._holds_selection = False  # the cache holds chunks that `rag` took out of the document, not its beginning
        # Pack needs one model for both, and one margin at a time.
        self._packs = self.settings.pack and classifier is not None and classifier.session.model is session.model
        self._unjudged: Margin | None = None  # its verdict rides along with the next chunk
        self._seconds: Counter[str] = Counter()
        self._tokens: Counter[str] = Counter()

    def stop(self) -> None:
        """Read no further; the answer is given from what has been read. May be called at any event or by a signal."""
        self.stopped = True

    def ask(self, query: str, pattern: str | None = None) -> Iterator[Event]:
        """Answer a question, yielding what happens (wim/events.py); the last event is Done.

        pattern: another than that of the settings, so that `llm` and `wim` can share a document; the plan must allow for it
        """
        self._sampler = Sampler(self.settings.temperature, self.settings.top_p, self.settings.seed)
        self._seconds.clear()
        self._tokens = Counter(document=0, margins=0, verdicts=0, final_prompt=0, answer=0)
        answer_by = {"wim": self._wim, "llm": self._llm, "rag": self._rag}[pattern or self.settings.pattern]
        margins: list[Margin] = []
        yield from self._back_to_last_chunk()
        answer = yield from answer_by(query, margins)
        yield Done(answer, margins, len(self.chunk_ends), dict(self._tokens), dict(self._seconds))

    def judge_chunks(self, queries: list[str]) -> Iterator[Event]:
        """Pattern `rag`: judge each chunk alone, on all the questions at once, which then need no other reading of it.

        `ask` does this for a question that has not been judged. Of each chunk an event for each question, in their order.
        """
        prompts = [self.prompts.relevance(query) for query in queries]
        found: list[list[float]] = []  # for each chunk, the probabilities for all questions
        # After a stop: as many chunks as for the questions before.
        n_wanted = min(map(len, self.relevance.values()), default=1) if self.stopped else 1
        yield from self._back_to_header()
        for chunk in self.plan.chunks:
            if self.stopped and chunk.index >= n_wanted:
                break
            self._holds_selection = True
            with self._timed("verdicts"):
                self.session.prefill(chunk.ids)
                probabilities = self.session.probability(prompts, self.prompts.yes, self.prompts.no)
            self._tokens["verdicts"] += len(chunk.ids) + sum(map(len, prompts))
            found.append(probabilities)
            for probability in probabilities:
                relevant = probability >= self.settings.threshold
                yield ChunkJudged(chunk.index, len(self.plan.chunks), len(chunk.ids), relevant, probability)
            yield from self._back_to_header()
        self.relevance |= {query: list(row) for query, row in zip(queries, zip(*found, strict=True), strict=True)}

    # The three patterns ------------------------------------------------------------------------------------------------

    def _wim(self, query: str, margins: list[Margin]) -> Iterator[Event]:
        for window in self._windows():
            yield from self._read(window, query)
            window = [chunk for chunk in window if chunk.index < len(self.chunk_ends)]
            if window:
                margins += yield from self._write_margins(query, window)
                more_to_read = window[-1].index + 1 == len(self.chunk_ends) and len(self.chunk_ends) < len(self.plan.chunks)
                if self._packs and more_to_read and not self.stopped:
                    self._unjudged = margins[-1]  # its verdict rides along with the next chunk
                else:
                    yield from self._judge(query, margins[-len(window) :])
        if self._unjudged is not None:
            yield from self._judge(query, [self._unjudged])
            self._unjudged = None
        relevant = [margin for margin in margins if margin.relevant]
        notes = [margin.text for margin in relevant]
        if not self.settings.keep_repeats:
            notes = list(without_repeats((margin.text, self.plan.chunks[margin.chunk]) for margin in relevant))
        return (yield from self._answer(self.prompts.answer_with_margins(query, notes)))

    def _llm(self, query: str, margins: list[Margin]) -> Iterator[Event]:
        yield from self._read(self.plan.chunks)
        return (yield from self._answer(self.prompts.answer(query)))

    def _rag(self, query: str, margins: list[Margin]) -> Iterator[Event]:
        """Judge each chunk alone, then read only the relevant ones; the most probable one if none is."""
        if query not in self.relevance:
            yield from self.judge_chunks([query])
        yield from self._back_to_header()
        self._holds_selection = True
        probabilities = self.relevance[query]
        least = min(self.settings.threshold, max(probabilities))
        for chunk, probability in zip(self.plan.chunks, probabilities, strict=False):
            if probability >= least:
                yield from self._read_chunk(chunk)
        return (yield from self._answer(self.prompts.answer(query)))

    # Their steps --------------------------------------------------------------------------------------------------------

    def _windows(self) -> list[list[Chunk]]:
        chunks, size = self.plan.chunks, self.plan.window
        return [chunks[i : i + size] for i in range(0, len(chunks), size)]

    def _open(self) -> None:
        """Read the header, once; some chat formats have none."""
        if self.session.length == 0 and self.prompts.header:
            with self._timed("prefill"):
                self.session.prefill(self.prompts.header)

    def _back_to_last_chunk(self) -> Iterator[Event]:
        """Back to the end of the last chunk: the caller may have walked away from an earlier question midway."""
        self._unjudged = None
        if self._holds_selection or not self.chunk_ends:
            yield from self._back_to_header()
        else:
            yield from self._roll_back(self.chunk_ends[-1])

    def _back_to_header(self) -> Iterator[Event]:
        """Back to the header."""
        self._open()
        self.chunk_ends, self._holds_selection = [], False
        yield from self._roll_back(len(self.prompts.header))

    def _read(self, chunks: list[Chunk], query: str = "") -> Iterator[Event]:
        """Prefill those of the chunks that the cache does not hold yet; once it holds one, a stop counts."""
        self._open()
        for chunk in chunks:
            if chunk.index < len(self.chunk_ends):
                continue
            if self.stopped and self.chunk_ends:
                return
            margin, self._unjudged = self._unjudged, None
            yield from self._read_chunk(chunk, query, margin)

    def _read_chunk(self, chunk: Chunk, query: str = "", margin: Margin | None = None) -> Iterator[Event]:
        """Prefill a chunk; the verdict on a margin can ride along."""
        with self._timed("prefill"):
            if margin is None:
                self.session.prefill(chunk.ids)
            else:
                probability, n_tokens = self.classifier.judge_while_reading(query, margin.text, self.session, chunk.ids)
                self._tokens["verdicts"] += n_tokens
            self.session.synchronize()
        if margin is not None:
            yield self._judged(margin, probability)
        self._tokens["document"] += len(chunk.ids)
        self.chunk_ends.append(self.session.length)
        yield ChunkRead(chunk.index, len(self.plan.chunks), len(chunk.ids), self.session.length)

    def _write_margins(self, query: str, window: list[Chunk]) -> Iterator[Event]:
        """The margins of a window of chunks that have been read."""
        prompts = [self.prompts.margin(query, chunk.beginning) for chunk in window]
        last = self.chunk_ends[window[-1].index]
        if len(window) == 1 and last == self.session.length:
            # The paper's way: right after the chunk, in the cache itself, and back.
            rows = ([token] for token in self._generate(prompts[0], self.settings.margin_tokens))
        else:
            # Several at once, or of chunks that others follow in the cache (a second question): as rows above all chunks.
            rows = self.session.branch(
                [self.chunk_ends[chunk.index] for chunk in window],
                prompts,
                self.settings.margin_tokens,
                self.prompts.stop_ids,
                self._sampler,
            )
        streams = [self.prompts.tokenizer.stream() for _ in window]
        texts = ["" for _ in window]

        def grow(row: int, text: str) -> Iterator[Event]:
            texts[row] += text
            if text:
                yield MarginToken(window[row].index, text)

        for tokens in self._timed_steps("margins", rows):
            for row, token in enumerate(tokens):
                if token is not None:
                    self._tokens["margins"] += 1
                    yield from grow(row, streams[row].put(token))
        for row, stream in enumerate(streams):
            yield from grow(row, stream.flush())
        yield from self._roll_back(self.chunk_ends[-1])

        return [
            Margin(chunk.index, chunk.start, chunk.end, text.strip()) for chunk, text in zip(window, texts, strict=True)
        ]

    def _judge(self, query: str, margins: list[Margin]) -> Iterator[Event]:
        """The verdicts on margins, together; without a classifier they are all relevant."""
        if self.classifier is None:
            yield from map(MarginDone, margins)
        elif margins:
            with self._timed("verdicts"):
                probabilities, n_tokens = self.classifier.judge(query, [margin.text for margin in margins])
            self._tokens["verdicts"] += n_tokens
            for margin, probability in zip(margins, probabilities, strict=True):
                yield self._judged(margin, probability)

    def _judged(self, margin: Margin, probability: float) -> MarginDone:
        margin.probability, margin.relevant = probability, probability >= self.settings.threshold
        return MarginDone(margin)

    def _answer(self, prompt: list[int]) -> Iterator[Event]:
        self._tokens["final_prompt"] = len(prompt)
        length, stream, answer = self.session.length, self.prompts.tokenizer.stream(), ""
        for token in self._timed_steps("answer", self._generate(prompt, self.settings.answer_tokens)):
            self._tokens["answer"] += 1
            if text := stream.put(token):
                answer += text
                yield AnswerToken(text)
        if text := stream.flush():
            answer += text
            yield AnswerToken(text)
        yield from self._roll_back(length)
        return answer.strip()

    def _generate(self, prompt: list[int], max_tokens: int) -> Iterator[int]:
        return self.session.generate(prompt, max_tokens, self.prompts.stop_ids, self._sampler)

    def _roll_back(self, length: int) -> Iterator[Event]:
        if (old := self.session.length) != length:
            self.session.rollback(length)
            yield Rollback(old, length)

    # Time ---------------------------------------------------------------------------------------------------------------

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._seconds[phase] += time.perf_counter() - start

    def _timed_steps(self, phase: str, steps: Iterator) -> Iterator:
        """The same steps; only what they take themselves counts, not what is done with them."""
        while True:
            with self._timed(phase):
                step = next(steps, None)
            if step is None:
                return
            yield step
