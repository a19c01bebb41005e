"""Follow the events of questions, and keep what a report or a notebook shows of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from wim.events import AnswerToken, ChunkJudged, ChunkRead, Done, Event, Margin, MarginToken, Rollback
from wim.notes import notes

if TYPE_CHECKING:
    from wim import WiM

PROMPTS = {"margin": "prompt", "answer": "final"}  # what is read before each is written


@dataclass
class Step:
    """The cache's length goes from `start` to `end`, in positions.

    kind: `header`, `chunk` or `judged` (a chunk that `rag` reads to judge it); `prompt` and `margin`; `final` (prompt) and
        `answer`; `rollback`.
        Or `branch`: a margin written beside the cache, as a row behind the position `start`, which moves no length
    chunk: its index; None for header and answer
    row: steps of one row belong together: a chunk, its margin, and the rollback
    began, ended: seconds after the question was asked
    until: when a rollback took it; None where it stayed
    """

    kind: str
    chunk: int | None
    start: int
    end: int
    row: int
    began: float
    ended: float
    until: float | None = None


@dataclass
class Recording:
    """One question.

    steps: in the order in which they began
    judged: the verdicts of `rag`
    done: the end, with the margins as they were then
    notes: the margins of the final prompt, each with what that had of it: nothing, where earlier ones said it all
    """

    query: str
    steps: list[Step] = field(default_factory=list)
    judged: list[ChunkJudged] = field(default_factory=list)
    done: Done = field(default_factory=lambda: Done("", [], 0))
    notes: list[tuple[Margin, str]] = field(default_factory=list)

    @property
    def read(self) -> set[int]:
        """The chunks from which the answer was written."""
        return {step.chunk for step in self.steps if step.kind == "chunk" and step.until is None}


class Recorder:
    """What happens to the questions about one document. One that is not answered to its end leaves nothing.

    answered: is called after each answer
    recordings: a Recording for each question, in the order in which they were answered
    """

    def __init__(self, wim: WiM, answered: Callable[[Recorder], None] | None = None):
        self.wim, self.answered = wim, answered
        self.recordings: list[Recording] = []

    def follow(self, query: str, events: Iterator[Event]) -> Iterator[Event]:
        """The events of `WiM.ask` or `WiM.answer`, as they are."""
        tape = _Tape(self.wim, Recording(query))
        for event in events:
            tape.note(event)
            if isinstance(event, Done):
                self.recordings.append(self._finished(tape.recording, event))
                if self.answered is not None:
                    self.answered(self)
            yield event

    def _finished(self, recording: Recording, done: Done) -> Recording:
        copies = {id(margin): replace(margin) for margin in done.margins}  # the caller may change them later
        left_out = [copies[id(margin)] for margin in done.left_out]
        recording.done = replace(done, margins=list(copies.values()), left_out=left_out)
        out = set(map(id, left_out))
        chosen = [margin for margin in copies.values() if margin.relevant and id(margin) not in out]
        recording.notes = list(zip(chosen, notes(self.wim.plan, chosen), strict=True))
        return recording


class _Tape:
    """Makes steps of events, and of the cache's length at each of them."""

    def __init__(self, wim: WiM, recording: Recording):
        self.wim, self.recording, self.steps = wim, recording, recording.steps
        self.began, self.length = time.perf_counter(), 0
        self.branches: dict[int, Step] = {}  # by chunk
        self.leftover = wim.session.length  # what an earlier question had read, and left behind that
        if self.leftover:
            for chunk, end in enumerate([len(wim.prompts.header), *wim.desk.chunk_ends], -1):
                kind = ("header", None) if chunk < 0 else ("chunk", chunk)
                self.steps.append(Step(*kind, self.length, end, -1, 0.0, 0.0))
                self.length = end

    def note(self, event: Event) -> None:
        match event:
            case ChunkRead(chunk=chunk, tokens=tokens, length=length):
                self._go("header", None, length - tokens)
                self._go("chunk", chunk, length)
            case ChunkJudged(chunk=chunk, tokens=tokens):
                self.recording.judged.append(event)
                self._go("header", None, self.wim.session.length - tokens)
                self._go("judged", chunk, self.wim.session.length)
            case MarginToken(chunk=chunk):
                self._write("margin", chunk)
            case AnswerToken():
                self._write("answer", None)
            case Rollback(old_length=old) if old == self.leftover > self.length:
                self.leftover = 0  # before anything else happens
            case Rollback(old_length=old, new_length=new):
                last = self.steps[-1] if self.steps else Step("rollback", None, 0, 0, -1, 0.0, 0.0)
                # Tokens without text moved the length, too.
                if last.kind in PROMPTS or last.kind in PROMPTS.values():
                    self._go(last.kind, last.chunk, old)
                elif last.kind == "chunk" and self._margins_follow_chunks():
                    self._go("prompt", last.chunk, old)
                else:
                    self._go("final", None, old)
                self._go("rollback", self.steps[-1].chunk if self.steps else None, new)

    def _write(self, kind: str, chunk: int | None) -> None:
        """A text grows in the cache behind its prompt, or beside the cache."""
        last = self.steps[-1]
        begun = last.chunk == chunk and last.kind in (PROMPTS[kind], kind)
        if (length := self.wim.session.length) > self.length:
            self._go(kind if begun else PROMPTS[kind], chunk, length)
        elif chunk is not None and not begun:
            if chunk not in self.branches:
                end = self.wim.desk.chunk_ends[chunk]
                self.branches[chunk] = self._step("branch", chunk, end, end)
            self.branches[chunk].end += 1
            self.branches[chunk].ended = self._now()

    def _margins_follow_chunks(self) -> bool:
        settings = self.wim.settings
        return settings.pattern == "wim" and settings.margins != "underlined" and self.wim.plan.margin_window == 1

    def _go(self, kind: str, chunk: int | None, length: int) -> None:
        """The length moves; where the last step was of the same kind, that goes on."""
        if length == self.length:
            return
        last = self.steps[-1] if self.steps else None
        if last is not None and (last.kind, last.chunk, last.end) == (kind, chunk, self.length):
            last.end, last.ended = length, self._now()
        else:
            last = self._step(kind, chunk, self.length, length)
        if kind == "rollback":
            for step in self.steps:
                if step.until is None and step.end > length and step.kind not in ("rollback", "branch"):
                    step.until = last.ended
        self.length = length

    def _step(self, kind: str, chunk: int | None, start: int, end: int) -> Step:
        last = self.steps[-1] if self.steps else None
        row = 0
        if last is not None and last.row >= 0:
            begins = kind in ("chunk", "judged", "branch") or (kind != "rollback" and chunk != last.chunk)
            row = last.row + (begins and last.kind != "header")
        self.steps.append(Step(kind, chunk, start, end, row, last.ended if last else 0.0, self._now()))
        return self.steps[-1]

    def _now(self) -> float:
        return time.perf_counter() - self.began
