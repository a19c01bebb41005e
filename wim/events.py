"""What happens while a document is read and a question answered, as it happens.

`WiM.ask` yields these; a terminal, a notebook or a test follows them. Chunks are counted from 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape

from wim.chunks import Chunk


@dataclass
class Margin:
    """A note on one chunk. The caller may set `relevant` against the verdict while the run goes on, or rewrite it.

    chunk: the index of the chunk it was written after
    start, end: it is about [start, end) of the document's tokens: that chunk, or an underlined sentence
    text: as the model wrote it
    relevant: whether it goes into the final prompt
    score: of an underlined sentence (wim/underlines.py): its share of the highest score; None for a written margin
    probability: of YES against NO in the verdict; None where no classifier was asked
    """

    chunk: int
    start: int
    end: int
    text: str
    relevant: bool = True
    probability: float | None = None
    score: float | None = None

    @property
    def certainty(self) -> float | None:
        """The score of an underlined sentence, else the probability of the verdict."""
        return self.probability if self.score is None else self.score

    @property
    def by_hand(self) -> bool:
        """Whether it is a note of somebody's own, about no part of the document (`added`)."""
        return self.start == self.end

    @classmethod
    def on(cls, chunk: Chunk, text: str) -> Margin:
        return cls(chunk.index, chunk.start, chunk.end, text)

    @classmethod
    def added(cls, chunk: Chunk, text: str) -> Margin:
        """A note that somebody writes by hand. chunk: the last one that has been read"""
        return cls(chunk.index, chunk.end, chunk.end, text)

    def judged(self, probability: float, threshold: float) -> None:
        """Take a verdict: the margin is relevant from the threshold on."""
        self.probability, self.relevant = probability, probability >= threshold

    def rewrite(self, text: str) -> None:
        """Replace the text by somebody's own, which is relevant: neither verdict nor score is about that."""
        self.text, self.relevant, self.probability, self.score = text, True, None, None


@dataclass(frozen=True)
class ChunkRead:
    """The chunk with the index `chunk`, of `chunks` in all, is in the cache: `tokens` more, `length` positions now."""

    chunk: int
    chunks: int
    tokens: int
    length: int


@dataclass(frozen=True)
class ChunkJudged:
    """Pattern `rag`: the chunk with the index `chunk` was judged alone; `probability` is that of YES against NO."""

    chunk: int
    chunks: int
    tokens: int
    relevant: bool
    probability: float


@dataclass(frozen=True)
class MarginToken:
    """More text of the margin on `chunk`; margins of one window grow side by side."""

    chunk: int
    text: str


@dataclass(frozen=True)
class MarginDone:
    """A margin is written and judged. `margin` is the live object: set `margin.relevant` to overrule the verdict."""

    margin: Margin


@dataclass(frozen=True)
class Noted:
    """All margins on the question are there, and the answer comes next.

    margins: the list itself. Whoever holds on here may drop, keep, rewrite or add some: the answer is written from what is
        in it when the next event is asked for
    """

    margins: list[Margin]


@dataclass(frozen=True)
class Rollback:
    """The cache's pointer moved back from `old_length` to `new_length`."""

    old_length: int
    new_length: int


@dataclass(frozen=True)
class AnswerToken:
    """More text of the answer."""

    text: str


@dataclass(frozen=True)
class Done:
    """The answer, and what it took.

    chunks_read: how many were in the cache when the answer was written; fewer than all if the caller stopped the reading,
        or in the pattern `rag`
    tokens: counts by phase: document (prefilled for this question; 0 when it had been read before), margins, verdicts
        (what was read for them: prompts, and in `rag` the chunks), final_prompt, answer
    seconds: of wall clock, by phase: prefill (with verdicts that ride along), margins (written and underlined), verdicts,
        answer
    left_out: relevant margins for which the final prompt had no room, the least probable ones
    """

    answer: str
    margins: list[Margin]
    chunks_read: int
    tokens: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    left_out: list[Margin] = field(default_factory=list)

    def _repr_html_(self) -> str:
        """What a notebook shows: the answer, and the margins that are relevant."""
        relevant = [margin for margin in self.margins if margin.relevant]
        noted = "".join(f"<li>{escape(margin.text)} <small>chunk {margin.chunk + 1}</small></li>" for margin in relevant)
        return f"<p><b>{escape(self.answer)}</b></p>" + (f"<ul>{noted}</ul>" if noted else "")


Event = ChunkRead | ChunkJudged | MarginToken | MarginDone | Noted | Rollback | AnswerToken | Done
Tell = Callable[[str], Event]  # makes an event of a piece of text
