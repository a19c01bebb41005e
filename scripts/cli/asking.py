"""Answer one question at the screen: show what happens, and heed Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cli.keyboard import on_ctrl_c
from cli.record import Record
from cli.start import clear
from cli.terminal import Terminal, printable
from wim.events import AnswerToken, ChunkJudged, Done, Event, Margin, MarginDone, Noted
from wim.prompts import one_line

if TYPE_CHECKING:  # it needs torch
    from wim import WiM

Review = Callable[[list[Margin]], None]
Through = Callable[[str, Iterator[Event]], Iterator[Event]]


class Quit(KeyboardInterrupt):
    """Somebody wants to leave before the answer."""


@dataclass
class Asked:
    """A question and what has come of it so far.

    margins: the live ones, which `Asking.again` answers from
    done: None where Ctrl-C came first
    """

    query: str
    margins: list[Margin] = field(default_factory=list)
    judged: list[ChunkJudged] = field(default_factory=list)
    done: Done | None = None


class Asking:
    """Asks a document, and a person looks on.

    record: gets each answer; its sources say where margins stand
    answers: whether to print the answer
    stop: stops the reading; None for wim.stop
    through: what the events of each question pass through
    """

    def __init__(
        self,
        wim: WiM,
        record: Record,
        answers: bool = True,
        stop: Callable[[], object] | None = None,
        through: Through = lambda query, events: events,
    ):
        self.wim, self.record, self.answers, self.through = wim, record, answers, through
        self.stop = stop or wim.stop

    def ask(self, query: str, *, returns: bool = False, review: Review | None = None) -> Asked:
        """Answer a question.

        returns: Ctrl-C stops what runs and returns. Otherwise it stops the reading, and the answer comes from what has been
            read; a second one, or one during the answer, raises KeyboardInterrupt
        review: gets the margins before the answer is written
        """
        print(f"question: {printable(one_line(query))}", file=sys.stderr)
        return self._follow(Asked(query), self.wim.ask(query), self._doing(), returns, review)

    def again(self, asked: Asked) -> Asked:
        """Answer anew, from what has been read and from the margins as they are now. Ctrl-C returns."""
        again = Asked(asked.query, asked.margins)
        return self._follow(again, self.wim.answer(asked.query, asked.margins), "answering", True)

    def _follow(
        self, asked: Asked, events: Iterator[Event], doing: str, returns: bool, review: Review | None = None
    ) -> Asked:
        wim, plan = self.wim, self.wim.plan
        chunks = 0 if wim.settings.pattern == "rag" else len(plan.chunks)
        terminal = Terminal(self._tokens_left(), self.record.sources, doing, chunks, self.answers)
        ctrl_c, events = CtrlC(self, terminal, returns), self.through(asked.query, events)
        with on_ctrl_c(ctrl_c):
            try:
                for event in events:
                    match event:
                        case AnswerToken():
                            ctrl_c.answering = True
                        case ChunkJudged():
                            asked.judged.append(event)
                        case MarginDone(margin=margin):
                            asked.margins.append(margin)
                        case Noted(margins=margins):
                            asked.margins = margins
                        case Done():
                            asked.done = event
                    terminal.show(event)
                    if isinstance(event, Noted) and review is not None:
                        clear()
                        review(asked.margins)
                    if ctrl_c.stopped:
                        break
            except KeyboardInterrupt as error:
                if not returns or isinstance(error, Quit):
                    raise
            finally:
                events.close()
                terminal.close()
        if asked.done is not None:
            self.record.add(asked.query, asked.done, asked.judged)
        else:
            print("Stopped.", file=sys.stderr)
        return asked

    def is_read(self) -> bool:
        """Whether no more of the document is going to be read."""
        return len(self.wim.desk.chunk_ends) == len(self.wim.plan.chunks) or self.wim.stopped

    def _doing(self) -> str:
        """What a question begins with."""
        if not self.is_read():
            return "reading"
        return "margins" if self._writes() else "looking" if self.wim.settings.pattern == "wim" else "answering"

    def _writes(self) -> bool:
        return self.wim.settings.pattern == "wim" and self.wim.settings.margins != "underlined"

    def _tokens_left(self) -> int:
        """Of chunks that are still to be read, or to get a margin."""
        plan, n_read = self.wim.plan, len(self.wim.desk.chunk_ends)
        return plan.document_tokens - (plan.chunks[n_read - 1].end if n_read and not self._writes() else 0)


class CtrlC:
    """What Ctrl-C does while a question is answered, see Asking.ask. A line that is being written is finished first."""

    def __init__(self, asking: Asking, terminal: Terminal, returns: bool):
        self.asking, self.terminal, self.returns = asking, terminal, returns
        self.pressed = self.answering = False

    @property
    def stopped(self) -> bool:
        """Whether to return at once."""
        return self.pressed and self.returns

    def __call__(self, signum: int, frame: object) -> None:
        if self.pressed or self.answering and not self.returns:
            raise KeyboardInterrupt
        self.pressed = True
        if self.returns:
            return
        if self.asking.is_read():
            self.terminal.note("The document is read, and the answer follows. Ctrl-C again quits.")
        else:
            self.asking.stop()
            self.terminal.note("Reading stops after this chunk, and the answer follows. Ctrl-C again quits.")
