"""Documents put together from passages: those that a question is about, and others to reach a length.

This is how RULER lengthens question answering (Hsieh et al. 2024, arXiv 2404.06654, section 3, "Question answering"):
the paragraphs of other questions are mixed in as distractors.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tasks.document import Document, Question, Span

SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Passage:
    """A paragraph or an article; passages of one name are the same."""

    name: str
    text: str


@dataclass(frozen=True)
class PassageQuestion:
    """A question whose evidence is told by passage.

    evidence: pairs (index of the passage, span in its text)
    alternatives: other answers that count as right
    """

    query: str
    target: str
    evidence: tuple[tuple[int, Span], ...] = ()
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True)
class Example:
    """The passages that one or more questions are about."""

    task: str
    passages: tuple[Passage, ...]
    questions: tuple[PassageQuestion, ...]


def assemble(example: Example, order: Sequence[Passage]) -> Document:
    """The document of the passages in this order (the example's among them), with the evidence in its place."""
    starts: dict[str, int] = {}
    length = 0
    for passage in order:
        starts[passage.name] = length
        length += len(passage.text) + len(SEPARATOR)

    def place(index: int, span: Span) -> Span:
        start = starts[example.passages[index].name]
        return start + span[0], start + span[1]

    questions = tuple(
        Question(example.task, q.query, q.target, tuple(sorted(place(*e) for e in q.evidence)), q.alternatives)
        for q in example.questions
    )
    return Document(SEPARATOR.join(passage.text for passage in order), questions)


def lengthened(
    examples: Sequence[Example], pool: Sequence[Passage], n_tokens: int, count_tokens: Callable[[str], int], seed: int
) -> Iterator[Document]:
    """Each example's document with other passages of the pool mixed in, up to about `n_tokens` tokens.

    Passages stay whole, so a document may be shorter by up to the length of one. An example whose own passages are
    longer than n_tokens is left out, and one that has none where no other fits.
    """
    counted: dict[str, int] = {}

    def tokens(passage: Passage) -> int:
        if passage.name not in counted:
            counted[passage.name] = count_tokens(passage.text + SEPARATOR)
        return counted[passage.name]

    for number, example in enumerate(examples):
        rng = random.Random(f"passages-{seed}-{number}")
        order = list(example.passages)
        room = n_tokens - sum(map(tokens, order))
        if room < 0:
            continue
        names = {passage.name for passage in order}
        misses = 0
        while pool and misses < 20:  # so many in a row did not fit or were there: full
            passage = rng.choice(pool)
            if passage.name in names or tokens(passage) > room:
                misses += 1
                continue
            misses = 0
            names.add(passage.name)
            order.append(passage)
            room -= tokens(passage)
        rng.shuffle(order)
        if order:
            yield assemble(example, order)
