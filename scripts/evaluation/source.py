"""Which documents an evaluation reads, made one after another, cut into chunks and ready to be planned.

A cell is one length and the tasks that share its documents: a story is asked all the story questions, needles all the
needle questions. A generated document always has room for every task of its kind, whichever are asked, so the results of a
task do not depend on what else was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from tasks import NEEDLE_TASKS, STORY_TASKS, Background, Document, Question, make_document, read_examples
from tasks.common_words import COMMON_WORDS_TASKS

from model.errors import DoesNotFit
from wim.budget import check_length
from wim.chunks import Chunk, split_document

if TYPE_CHECKING:
    from weights import Tokenizer

TASK_GROUPS = (STORY_TASKS, NEEDLE_TASKS, COMMON_WORDS_TASKS)
# The demo checkpoints were trained on the prose of seed 0, among other text; nobody was on this.
PROSE_SEED = 1


@dataclass(frozen=True)
class Cell:
    """Tasks on the same documents. length: in tokens; None where a file's documents stay as they are."""

    tasks: tuple[str, ...]
    length: int | None


@dataclass(frozen=True)
class Item:
    """One document of a cell.

    number: counts them from 0
    chunks: None where the document is far too long to be read
    """

    cell: Cell
    number: int
    document: Document
    chunks: list[Chunk] | None

    def questions(self, most: int) -> list[tuple[int, Question]]:
        """The first questions of each of the cell's tasks, at most `most`, numbered from 0 within their task."""
        by_task = [[question for question in self.document.questions if question.task == task] for task in self.cell.tasks]
        return [(number, question) for questions in by_task for number, question in enumerate(questions[:most])]


@dataclass(frozen=True)
class Source:
    """Where documents come from: generators, or a file where `data` is given.

    text: a folder of books to hide facts in; None for built-in prose
    statements: facts in a generated document
    data, format, corpus: see tasks.read_examples
    questions: the most of a task that are asked about one document
    seed: of the documents
    """

    text: str | None = None
    statements: int | None = None
    data: str | None = None
    format: str | None = None
    corpus: str | None = None
    questions: int = 1
    seed: int = 0

    def cells(self, tasks: list[str], lengths: list[int | None]) -> list[Cell]:
        """tasks: names of generated tasks; a file's are read off its first question."""
        if self.data is not None:
            first = next(read_examples(self.data, self.format, corpus=self.corpus))
            groups = [(first.questions[0].task,)]
        else:
            groups = [tuple(task for task in family if task in tasks) for family in TASK_GROUPS]
        return [Cell(group, length) for group in groups if group for length in lengths]

    def documents(
        self, cell: Cell, tokenizer: Tokenizer, skip: frozenset[int] = frozenset()
    ) -> Iterator[tuple[int, Document]]:
        """The documents of a cell with their numbers; a generator's have no end."""

        def count_tokens(text: str) -> int:
            return len(tokenizer.encode(text))

        if self.data is not None:
            lengthen = {} if cell.length is None else {"n_tokens": cell.length, "count_tokens": count_tokens}
            found = enumerate(read_examples(self.data, self.format, corpus=self.corpus, seed=self.seed, **lengthen))
            yield from ((number, document) for number, document in found if number not in skip)
            return
        family = next(family for family in TASK_GROUPS if cell.tasks[0] in family)
        background = load_background(self.text)
        number = -1
        while True:
            number += 1
            if number not in skip:
                yield (
                    number,
                    make_document(
                        list(family),
                        seed=self.seed * 1_000_000 + number,
                        n_tokens=cell.length,
                        count_tokens=count_tokens,
                        background=background,
                        n_questions=len(family) * self.questions_each(cell),
                        n_statements=self.statements,
                    ),
                )

    def questions_each(self, cell: Cell) -> int:
        """How many questions of a task a document has (of a file: at most); a list of words allows one."""
        return 1 if cell.tasks[0] in COMMON_WORDS_TASKS else self.questions


@cache
def load_background(folder: str | None) -> Background:
    """The books of a folder, or built-in prose."""
    return Background.generated(PROSE_SEED) if folder is None else Background.from_folder(folder)


@dataclass(frozen=True)
class Work:
    """What is to be read. An instance can be sent to another process, where calling it makes the items.

    model, revision: whose tokenizer counts and cuts
    skip: for each cell, the numbers of documents that need not be made
    """

    source: Source
    cells: tuple[Cell, ...]
    n_documents: int
    skip: dict[Cell, frozenset[int]]
    model: str
    revision: str | None
    chunk_tokens: int

    def shares(self, most: int) -> list[Work]:
        """The same work in at most so many parts, none of them without a document.

        Documents are dealt out like cards, the longest first, so that all parts take about as long.
        """
        left = [
            (cell, number)
            for cell in sorted(self.cells, key=lambda cell: -(cell.length or 0))
            for number in range(self.n_documents)
            if number not in self.skip.get(cell, frozenset())
        ]
        n = max(1, min(most, len(left)))
        return [self._only(frozenset(left[i::n])) for i in range(n)]

    def _only(self, chosen: frozenset[tuple[Cell, int]]) -> Work:
        others = {
            cell: frozenset(number for number in range(self.n_documents) if (cell, number) not in chosen)
            for cell in self.cells
        }
        return replace(self, skip=others)

    def __call__(self) -> Iterator[tuple[Cell, Item | None]]:
        """Every cell's documents, and None at the end of the cell."""
        from weights import Checkpoint

        checkpoint = Checkpoint.open(self.model, self.revision)
        for cell in self.cells:
            skip = self.skip.get(cell, frozenset())
            if len(skip) < self.n_documents:
                for number, document in self.source.documents(cell, checkpoint.tokenizer, skip):
                    if number >= self.n_documents:
                        break
                    try:
                        check_length(document.text, checkpoint)
                        chunks = split_document(document.text, checkpoint.tokenizer, self.chunk_tokens)
                    except DoesNotFit:  # who plans to read it will say so
                        chunks = None
                    yield cell, Item(cell, number, document, chunks)
            yield cell, None
