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
order of events; tensors are the business of the session (wim/contracts.py says what it must do). The desk (wim/desk.py) has
the session read, write and roll back, tells what happens, and keeps how far the document has been read.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from functools import partial

from wim import baselines, underlines, windows
from wim.budget import Plan
from wim.chunks import Chunk
from wim.contracts import FullSession, Session, check_session
from wim.desk import Desk
from wim.events import AnswerToken, Done, Event, Margin, MarginDone, MarginToken, Noted
from wim.notes import last_prompt
from wim.room import check_question
from wim.verdict import Classifier, says_nothing


class WiM:
    """One document and the questions asked about it.

    plan: the document in chunks, the settings and the prompts (wim/budget.py)
    session: the model, with a cache of at least plan.capacity positions
    classifier: judges margins; None keeps all that say something
    Raises InputError for a session that is without something that the settings ask for.
    """

    def __init__(self, plan: Plan, session: Session | FullSession, classifier: Classifier | None = None):
        check_session(session, plan.settings, plan.settings.pattern, plan.margin_window)
        self.plan, self.session, self.classifier = plan, session, classifier
        self.settings, self.prompts, self.desk = plan.settings, plan.prompts, Desk(plan, session)
        # Characters [start, end) of the document that are the caller's own, as between files: no underline begins there.
        self.headings: Sequence[tuple[int, int]] = ()
        self.relevance: dict[str, list[float]] = {}  # pattern `rag`: for a question, the probability of each chunk

    def ask(self, query: str, pattern: str | None = None) -> Iterator[Event]:
        """Answer a question, yielding what happens (wim/events.py); the last event is Done.

        pattern: another than that of the settings, so that `llm` and `wim` can share a document; the plan must allow for it
        Raises InputError for a question that is so much longer than those of the plan that there is no room for it.
        """
        pattern = pattern or self.settings.pattern
        check_question(self.plan, query, pattern)
        check_session(self.session, self.settings, pattern, self.plan.margin_window)
        self.desk.begin()
        yield from self.desk.rollback()  # the caller may have walked away from an earlier question midway
        match pattern:
            case "llm":
                yield from baselines.llm(self, query)
            case "rag":
                yield from baselines.rag(self, query)
            case "wim":
                if self.settings.margins != "underlined" and not hasattr(self.session, "branch"):
                    yield from self.desk.forget_document()  # it can write behind what it read last, and nowhere else
                margins = yield from self._margins(query)
                yield Noted(margins)
                yield from self._answer(query, margins)

    def one_by_one(self, query: str) -> Generator[Event, None, list[Margin]]:
        """The paper's loop. Returns the margins on the chunks."""
        margins = []
        for chunk in self.desk.until_stopped(self.plan.chunks):
            yield from self.desk.read(chunk)
            if not self.plan.margin_tokens[chunk.index]:  # the context ends here
                continue
            margin = yield from self.write_margin(query, chunk)
            yield from self.desk.rollback()
            yield from self.judge(query, [margin])
            margins.append(margin)
        return margins

    def write_margin(self, query: str, chunk: Chunk) -> Generator[Event, None, Margin]:
        """Write it right after the chunk, in the cache; as a branch if other chunks follow it (at a second question)."""
        if self.session.length > self.desk.chunk_ends[chunk.index]:
            return (yield from windows.write_margins(self, query, [chunk]))[0]
        prompt = self.prompts.margin(query, chunk.beginning)
        max_tokens, event = self.plan.margin_tokens[chunk.index], partial(MarginToken, chunk.index)
        text = yield from self.desk.generate("margins", prompt, max_tokens, event)
        return Margin.on(chunk, text)

    def judge(self, query: str, margins: Sequence[Margin]) -> Iterator[Event]:
        """Get the verdicts on margins, all together. Without a classifier, all that say something are relevant."""
        for margin in margins:
            margin.relevant = not says_nothing(margin.text)
        asked = [margin for margin in margins if margin.relevant]
        if asked and self.classifier is not None:
            with self.desk.meter.timed("verdicts"):
                probabilities, n_tokens = self.classifier.judge(query, [margin.text for margin in asked])
            self.desk.meter.tokens["verdicts"] += n_tokens
            for margin, probability in zip(asked, probabilities, strict=True):
                margin.judged(probability, self.settings.threshold)
        yield from map(MarginDone, margins)

    def _answer(self, query: str, margins: Sequence[Margin]) -> Iterator[Event]:
        """The final prompt holds the relevant margins and the question."""
        room = self.plan.max_length - self.session.length - self.settings.answer_tokens
        prompt, left_out = last_prompt(self.plan, query, margins, room)
        yield from self.finish(prompt, len(self.desk.chunk_ends), margins, left_out)

    def finish(
        self, prompt: list[int], chunks_read: int, margins: Sequence[Margin] = (), left_out: Sequence[Margin] = ()
    ) -> Iterator[Event]:
        """Read the final prompt, write the answer, roll back. Every pattern ends in this way."""
        meter, length = self.desk.meter, self.session.length
        meter.tokens["final_prompt"] = len(prompt)
        answer = yield from self.desk.generate("answer", prompt, self.settings.answer_tokens, AnswerToken)
        yield from self.desk.rollback_to(length)
        yield Done(answer, list(margins), chunks_read, dict(meter.tokens), dict(meter.seconds), list(left_out))

    # Beside the loop ----------------------------------------------------------------------------------------------------

    def _margins(self, query: str) -> Generator[Event, None, list[Margin]]:
        """Written ones, underlined ones, or both, in the document's order. A new way to come by margins goes here."""
        margins: list[Margin] = []
        if self.settings.margins != "underlined":
            margins += yield from self._written(query)
        if self.settings.margins != "written":
            margins += yield from underlines.underline(self, query)
        return sorted(margins, key=lambda margin: (margin.chunk, margin.start))

    def _written(self, query: str) -> Generator[Event, None, list[Margin]]:
        """As the paper does, or one of the faster ways (wim/windows.py)."""
        if self.settings.pack and self.classifier is not None and self.classifier.session.model is self.session.model:
            return windows.riding_along(self, query)
        return windows.together(self, query) if self.plan.margin_window > 1 else self.one_by_one(query)

    def answer(self, query: str, margins: Sequence[Margin]) -> Iterator[Event]:
        """Answer from what has been read of the document, and from margins that somebody may have edited or written.

        `ask` ends in this way: the relevant margins count, and the last event is Done.
        Raises DoesNotFit for a question that there is no room for.
        """
        self.desk.begin()
        yield from self.desk.rollback()
        yield from self._answer(query, margins)

    def judge_chunks(self, queries: list[str]) -> Iterator[Event]:
        """Pattern `rag`: judge each chunk alone, on all the questions at once, which then need no other reading of it.

        `ask` does this for a question on which no chunk has been judged. Yields, for each chunk, an event for each
        question, in their order.
        """
        self.desk.begin()
        yield from baselines.judge_chunks(self, queries)

    def stop(self) -> None:
        """Read no further; the answer is given from what has been read. May be called at any event or by a signal."""
        self.desk.stopped = True

    @property
    def stopped(self) -> bool:
        return self.desk.stopped
