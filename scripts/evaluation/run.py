"""The run itself: documents are read one after another, each once for all that is asked about it, and answers recorded.

for each document:
    read it                       once for `llm` and `wim`, however many questions there are
    for each question:            answer, and for `wim` the margins before it
    judge each chunk alone        once for all questions of `rag`
    for each question:            read the chosen chunks, answer
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Container, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING

from cli.weights_bar import WeightsBar
from tasks import NO_EVIDENCE, Question, main_measure, score
from tasks.notes import evidence_found, evidence_sentences, is_useful, same_words

from evaluation.ahead import ahead
from evaluation.progress import Progress
from evaluation.results import AnswerRecord, Key, Results
from evaluation.source import Cell, Item, Source, Work
from evaluation.workers import side_by_side
from model.errors import DoesNotFit
from wim.budget import Plan, make_plan
from wim.events import Margin
from wim.prompts import Prompts
from wim.settings import Settings

if TYPE_CHECKING:  # what needs torch is imported where it is used: --help does not wait for it
    import torch

    from weights import Checkpoint
    from wim import WiM


@dataclass(frozen=True)
class Setup:
    """What is asked of whom. n_documents: for each cell; settings: their `pattern` does not count, `patterns` does.

    prompts: see make_plan
    """

    checkpoint: Checkpoint
    classifier: Checkpoint | None
    settings: Settings
    prompts: Prompts | None
    patterns: tuple[str, ...]
    source: Source
    cells: tuple[Cell, ...]
    n_documents: int
    device: torch.device
    dtype: torch.dtype
    compiled: bool = False
    weights: str = "float"

    def finished(self, cell: Cell, results: Results) -> frozenset[int]:
        """The documents of which every answer is there. Only a file itself knows how many questions its documents have."""
        if self.source.data is not None:
            return frozenset()
        each = range(self.source.questions_each(cell))
        return frozenset(
            number
            for number in range(self.n_documents)
            if all((task, cell.length, number, i, p) in results for task in cell.tasks for i in each for p in self.patterns)
        )

    def answered(self, item: Item, done: Container[Key]) -> bool:
        return all(
            (question.task, item.cell.length, item.number, number, pattern) in done
            for number, question in item.questions(self.source.questions)
            for pattern in self.patterns
        )

    def plan(self, item: Item) -> Plan | LeftOut:
        """How to read a document; one of a file is left out where it does not fit.

        Raises DoesNotFit for a generated one: there the length that was asked for is wrong.
        """
        queries = [question.query for _, question in item.questions(self.source.questions)]
        try:
            return make_plan(
                self.checkpoint,
                item.document.text,
                queries,
                self.settings,
                self.prompts,
                self.classifier,
                patterns=self.patterns,
                chunks=item.chunks,
            )
        except DoesNotFit as error:
            if self.source.data is None:
                raise
            return LeftOut(str(error))

    def is_close(self, cell: Cell, plan: Plan) -> bool:
        """Whether another document of the cell might not fit where this one does.

        It may have more tokens, up to the cell's length, and be cut into more chunks; and its questions may be longer.
        """

        def at_most(n_positions: int) -> int:  # generous: to be wrong on this side costs nothing but time
            return n_positions + n_positions // 4 + 128

        needed = [(cell.length + at_most(plan.min_length - plan.document_tokens), self.checkpoint)]
        if self.classifier is not None:
            needed.append((at_most(plan.verdict_length), self.classifier))
        return any(n_positions > checkpoint.config.context_length for n_positions, checkpoint in needed)


@dataclass(frozen=True)
class Begun:
    """A document is about to be read."""

    cell: Cell
    number: int


@dataclass(frozen=True)
class Answered:
    """A question has been answered by a pattern."""

    cell: Cell
    record: AnswerRecord


@dataclass(frozen=True)
class LeftOut:
    """A context cannot hold a document of a file; `reason` has the numbers."""

    reason: str


@dataclass(frozen=True)
class Ended:
    """There is nothing more to do of a cell."""

    cell: Cell


WorkEvent = Begun | Answered | LeftOut | Ended


def run(
    setup: Setup, results: Results, progress: Progress, finish_cell: Callable[[Cell], None], n_workers: int = 1
) -> list[str]:
    """Answer what has not been answered. `finish_cell` is called for each cell in turn, when all its answers are there.

    n_workers: the most processes that answer side by side, on the CPU; this one writes and shows what they send
    Returns for each document that was left out why it does not fit: only a file's; a generated one that does not fit is
    refused before the work starts.
    Raises InputError for such a one, for a bad file, and for a process that is lost.
    """
    finished = {cell: setup.finished(cell, results) for cell in setup.cells}
    source, settings, checkpoint = setup.source, setup.settings, setup.checkpoint
    work = Work(
        source, setup.cells, setup.n_documents, finished, checkpoint.name, checkpoint.revision, settings.chunk_tokens
    )
    shares = work.shares(n_workers)
    if len(shares) == 1:
        stream = work_through(setup, work, results, progress=WeightsBar.on_terminal())
    else:
        largest_plan(setup, work)  # before any of the processes begins: each looks only at its own share
        done = frozenset(results.records)
        stream = side_by_side([partial(work_through, setup, share, done) for share in shares])

    left_out, n_ended = [], Counter()
    with closing(stream):
        for event in stream:
            match event:
                case Begun(cell, number):
                    progress.begin(cell, number)
                case Answered(cell, record):
                    results.add(record)
                    progress.answered(cell)
                case LeftOut(reason):
                    left_out.append(reason)
                case Ended(cell):
                    # Each process goes through the cells in turn, so they end in turn for all of them together.
                    n_ended[cell] += 1
                    if n_ended[cell] == len(shares):
                        progress.end(cell)
                        finish_cell(cell)
    return left_out


def work_through(setup: Setup, work: Work, done: Container[Key], progress: WeightsBar | None = None) -> Iterator[WorkEvent]:
    """Do the work, or one process's share of it.

    done: what has been answered before
    progress: told how far the loading of the weights is
    """
    from weights.sessions import Sessions
    from wim import Reader

    sessions = Sessions(setup.device, setup.dtype, progress, setup.compiled, setup.weights)
    reader = Reader(setup.checkpoint, setup.classifier, sessions)
    if (largest := largest_plan(setup, work)) is not None:
        reader.open(largest)
    # The CPU has enough to do with the model, where that is where the model is.
    stream = work() if setup.device.type == "cpu" else ahead(work)
    for cell, item in stream:
        if item is None:
            yield Ended(cell)
            continue
        if setup.answered(item, done):
            continue
        yield Begun(cell, item.number)
        plan = setup.plan(item)
        if isinstance(plan, LeftOut):
            yield plan
            continue
        for record in answers(reader.open(plan), item, setup, done):
            yield Answered(cell, record)


def largest_plan(setup: Setup, work: Work) -> Plan | None:
    """The plan that needs the most room of the first documents of each cell: about what all of them need.

    Where a generated one only just fits, all of its cell are planned: what does not fit is known before the work starts.
    Raises DoesNotFit for that.
    """
    plans = []
    for cell in work.cells:
        if cell.length is None or len(work.skip[cell]) == work.n_documents:
            continue
        items = (item for _, item in replace(work, cells=(cell,))() if item is not None)
        found = (plan for item in items if isinstance(plan := setup.plan(item), Plan))
        plans += islice(found, 1)
        if setup.source.data is None and setup.is_close(cell, plans[-1]):
            plans += found
    return max(plans, key=lambda plan: plan.capacity, default=None)


def answers(wim: WiM, item: Item, setup: Setup, done: Container[Key]) -> Iterator[AnswerRecord]:
    """Ask all that has not been answered about a document."""
    asked = [Asked(item, wim, number, question) for number, question in item.questions(setup.source.questions)]
    judged_seconds: float | None = None
    for pattern in sorted(setup.patterns, key=lambda pattern: pattern == "rag"):  # it leaves no document in the cache
        for question in asked:
            if question.key(pattern) in done:
                continue
            if pattern == "rag" and judged_seconds is None:
                # On all questions, answered or not: what is judged together must not depend on interruptions.
                start = time.perf_counter()
                for _ in wim.judge_chunks(list(dict.fromkeys(each.question.query for each in asked))):
                    pass
                judged_seconds = (time.perf_counter() - start) / len(asked)
            yield question.answer(pattern, judged_seconds)


@dataclass(frozen=True)
class Asked:
    """A question about an opened document."""

    item: Item
    wim: WiM
    number: int
    question: Question

    def key(self, pattern: str) -> Key:
        return self.question.task, self.item.cell.length, self.item.number, self.number, pattern

    @cached_property
    def gold(self) -> list[str | None]:
        """The word-for-word margin of each chunk; None where the source does not tell the evidence."""
        told = bool(self.question.evidence)
        spans = [(chunk.text_start, chunk.text_end) for chunk in self.item.chunks]
        return [self.item.document.margin(self.question, *span) if told else None for span in spans]

    def answer(self, pattern: str, judged_seconds: float | None) -> AnswerRecord:
        """Ask, and write down everything.

        judged_seconds: this question's share of the time in which the chunks were judged, for `rag`
        """
        *_, done = self.wim.ask(self.question.query, pattern)
        seconds = {phase: round(value, 4) for phase, value in done.seconds.items()}
        record: AnswerRecord = dict(
            zip(("task", "length", "document", "question", "pattern"), self.key(pattern), strict=True)
        )
        record |= {
            "query": self.question.query,
            "target": self.question.target,
            "answer": done.answer,
            "scores": score(self.question, done.answer),
            "measure": main_measure(self.question),
        }
        if pattern == "wim":
            record |= self._margins(done.margins, done.left_out)
            if done.left_out:
                record["left_out"] = [margin.chunk for margin in done.left_out]
        if pattern == "rag":
            threshold = self.wim.settings.threshold
            probabilities = self.wim.relevance[self.question.query]
            record["chunks"] = [{"chunk": i} | self._judged(i, p >= threshold, p) for i, p in enumerate(probabilities)]
            seconds["verdicts"] = round(judged_seconds, 4)
        return record | {"document_tokens": self.wim.plan.document_tokens, "tokens": done.tokens, "seconds": seconds}

    def _margins(self, margins: list[Margin], left_out: list[Margin]) -> AnswerRecord:
        """The margins, each judged; and how much of the evidence those hold that went into the final prompt."""
        told = evidence_sentences(self.item.document, self.question)
        found = evidence_found(
            self.question, told, [margin.text for margin in margins if margin.relevant and margin not in left_out]
        )
        judged = [
            {"chunk": margin.chunk, "text": margin.text}
            | self._judged(margin.chunk, margin.relevant, margin.certainty)
            | {
                "word_for_word": same_words(margin.text, self.gold[margin.chunk]) if told else None,
                "useful": is_useful(margin.text, self.question, told) if told else None,
            }
            for margin in margins
        ]
        return {"margins": judged, "evidence": len(told), "evidence_found": found}

    def _judged(self, chunk: int, relevant: bool, probability: float | None) -> AnswerRecord:
        """A verdict, and the one that would be right: a chunk is relevant when there is evidence in it."""
        gold = self.gold[chunk]
        right = None if gold is None else relevant == (gold != NO_EVIDENCE)
        return {"relevant": relevant, "probability": probability, "gold": gold, "verdict_right": right}
