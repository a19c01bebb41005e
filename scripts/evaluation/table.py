"""From answers to numbers: what a pattern scores, by how much two differ, how many margins are right.

The unit is the document: questions about one document are averaged first, so that an interval counts each document once.
Values are in percent, with the 95% interval of the mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tasks import NO_EVIDENCE, bootstrap, interval

from evaluation.results import AnswerRecord
from evaluation.source import Cell

# Questions that ask for more than one fact: what margins are for.
SEVERAL_FACTS = ("two_facts", "listing", "counting")


@dataclass(frozen=True)
class Estimate:
    """The mean of n values, and its 95% interval."""

    mean: float
    low: float
    high: float
    n: int

    def percent(self, sign: str = "") -> str:
        mean, low, high = (format(100 * value, f"{sign}.1f") for value in (self.mean, self.low, self.high))
        return f"{mean} ({low} to {high})"


def document_scores(
    records: Iterable[AnswerRecord], tasks: Sequence[str], length: int | None, pattern: str
) -> dict[int, float]:
    """For each document of which all these tasks were answered, the mean over the tasks of the mean over the questions."""
    found: dict[int, dict[str, list[float]]] = {}
    for record in records:
        if record["task"] in tasks and record["length"] == length and record["pattern"] == pattern:
            found.setdefault(record["document"], {}).setdefault(record["task"], []).append(record["scores"]["score"])
    return {
        document: _mean(_mean(scores) for scores in by_task.values())
        for document, by_task in sorted(found.items())
        if len(by_task) == len(tasks)
    }


def estimate(records: list[AnswerRecord], tasks: Sequence[str], length: int | None, pattern: str) -> Estimate | None:
    """What a pattern scores; None before the first answer."""
    values = list(document_scores(records, tasks, length, pattern).values())
    return Estimate(_mean(values), *interval(values), len(values)) if values else None


def difference(
    records: list[AnswerRecord], tasks: Sequence[str], length: int | None, pair: tuple[str, str]
) -> Estimate | None:
    """By how much the first pattern scores more than the second, document by document."""
    first, second = (document_scores(records, tasks, length, pattern) for pattern in pair)
    values = [first[document] - second[document] for document in first if document in second]
    return Estimate(_mean(values), *bootstrap(values), len(values)) if values else None


def margin_counts(records: Iterable[AnswerRecord], task: str, length: int | None) -> dict[str, tuple[int, int]]:
    """How many are right, of how many: margins of chunks with and without evidence (word for word), verdicts on margins,
    and `rag`'s on chunks (relevant if and only if there is evidence)."""
    right: dict[str, list[bool]] = {name: [] for name in ("with", "without", "verdicts", "chunks")}
    for record in records:
        if record["task"] != task or record["length"] != length:
            continue
        for margin in record.get("margins", ()):
            if margin["gold"] is not None:
                right["without" if margin["gold"] == NO_EVIDENCE else "with"].append(margin["word_for_word"])
                if margin["probability"] is not None:
                    right["verdicts"].append(margin["verdict_right"])
        right["chunks"] += [c["verdict_right"] for c in record.get("chunks", ()) if c["verdict_right"] is not None]
    return {name: (sum(values), len(values)) for name, values in right.items()}


class ScoreTable:
    """Rows as text, ready to be printed one after another: a row for each task and length, a column for each pattern."""

    def __init__(self, cells: Iterable[Cell], patterns: Sequence[str]):
        self.patterns = patterns
        self.pair = ("wim", "llm") if {"wim", "llm"} <= set(patterns) else None
        labels = [
            "task",
            *(task for cell in cells for task in cell.tasks),
            *(label for c in cells if (label := _average(c))),
        ]
        self.widths = [max(map(len, labels)), 6, 9, *(22 for _ in patterns), *([25] if self.pair else [])]

    def header(self) -> list[str]:
        names = ["task", "tokens", "documents", *self.patterns, *([" - ".join(self.pair)] if self.pair else [])]
        return [_line(names, self.widths), "|".join(["", *("-" * (width + 2) for width in self.widths), ""])]

    def rows(self, records: list[AnswerRecord], cell: Cell) -> list[str]:
        """A row for each of the cell's tasks, and one for the average of those that ask for several facts."""
        groups = [(task, (task,)) for task in cell.tasks]
        if label := _average(cell):
            groups.append((label, several_facts(cell)))
        return [self._row(label, records, tasks, cell.length) for label, tasks in groups]

    def _row(self, label: str, records: list[AnswerRecord], tasks: Sequence[str], length: int | None) -> str:
        estimates = [estimate(records, tasks, length, pattern) for pattern in self.patterns]
        n = max((found.n for found in estimates if found), default=0)
        columns = [label, _length(length), str(n), *(found.percent() if found else "" for found in estimates)]
        if self.pair:
            found = difference(records, tasks, length, self.pair)
            columns.append(found.percent("+") if found else "")
        return _line(columns, self.widths)


def margin_table(records: list[AnswerRecord], cells: Iterable[Cell]) -> list[str]:
    """How right margins and verdicts are, a row for each task and length whose evidence is known."""
    names = ["task", "tokens", "margins of chunks with a fact", "without", "verdicts on margins", "rag: verdicts on chunks"]
    rows = []
    for cell in cells:
        for task in cell.tasks:
            counts = margin_counts(records, task, cell.length)
            if any(n for _, n in counts.values()):
                rows.append([task, _length(cell.length), *(_share(*counts[name]) for name in counts)])
    widths = [max(len(row[i]) for row in [names, *rows]) for i in range(len(names))]
    head = [_line(names, widths), "|".join(["", *("-" * (width + 2) for width in widths), ""])]
    return [*head, *(_line(row, widths) for row in rows)] if rows else []


def several_facts(cell: Cell) -> tuple[str, ...]:
    return tuple(task for task in cell.tasks if task in SEVERAL_FACTS)


def _average(cell: Cell) -> str | None:
    """The label of the row that averages over tasks; None where there is nothing to average."""
    tasks = several_facts(cell)
    return f"mean of {', '.join(tasks)}" if len(tasks) > 1 else None


def _length(length: int | None) -> str:
    return "own" if length is None else str(length)


def _share(right: int, n: int) -> str:
    return f"{100 * right / n:.1f} ({right}/{n})" if n else ""


def _line(columns: Sequence[str], widths: Sequence[int]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(column.ljust(width) for column, width in zip(columns, widths, strict=True)) + " |"


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)
