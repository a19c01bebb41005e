"""What every task gives: a document, and questions on it that know which of its sentences bear on them.

The evidence of a question is kept as character spans, so the perfect margin of any chunk can be read off the
document, whatever the chunks are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Span = tuple[int, int]  # characters [start, end)

NO_EVIDENCE = "None."  # the margin of a chunk in which nothing bears on the question


@dataclass(frozen=True)
class Question:
    """One question on a document.

    target: a string, or a tuple of strings where the answer is a list
    evidence: the character spans of the sentences that bear on the question, in document order; empty where the source
        does not tell
    alternatives: other answers that count as right
    choices: what can be chosen, as `query` shows it; `target` is then the letter of the right one, A for the first
    """

    task: str
    query: str
    target: str | tuple[str, ...]
    evidence: tuple[Span, ...] = ()
    alternatives: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    @property
    def targets(self) -> tuple[str, ...]:
        """The target as a tuple, whether the answer is a list or not."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def answer(self) -> str:
        """The text of the right reply."""
        return ", ".join(self.targets)


@dataclass(frozen=True)
class FactQuestion:
    """A question on a list of facts that have no place in a text yet.

    evidence: the indices of the facts that bear on the question, in order
    """

    task: str
    query: str
    target: str | tuple[str, ...]
    evidence: tuple[int, ...]

    def placed(self, spans: Sequence[Span]) -> Question:
        """The question on a text in which fact i stands at spans[i]."""
        return Question(self.task, self.query, self.target, tuple(spans[i] for i in self.evidence))


@dataclass(frozen=True)
class Document:
    """A text and the questions on it.

    seed: the seed it was made from; None where it was read from a file
    """

    text: str
    questions: tuple[Question, ...]
    seed: int | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def margin(self, question: Question, start: int, end: int) -> str:
        """The word-for-word margin of the chunk of characters [start, end): its evidence sentences, or "None.".

        Only sentences that lie wholly within the chunk count: one that a border cuts cannot be read there.
        """
        inside = [self.text[a:b] for a, b in question.evidence if start <= a and b <= end]
        return " ".join(inside) or NO_EVIDENCE
