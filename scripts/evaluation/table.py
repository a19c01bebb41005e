"""From answers to numbers: what a pattern scores, and by how much two differ.

The unit is the document: questions about one document are averaged first, so that an interval counts each document once.
Values are in percent, with the 95% interval of the mean. Three patterns and their difference fit in 100 columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tasks import TASKS, bounded_bootstrap, interval
from tasks.scores import MEASURES

from evaluation.results import AnswerRecord
from evaluation.source import Cell

# Questions that ask for more than one fact: what margins are for.
SEVERAL_FACTS = ("two_facts", "listing", "counting")
MEAN_LABEL = "mean of several"


@dataclass(frozen=True)
class Estimate:
    """The mean of n values, and its 95% interval."""

    mean: float
    low: float
    high: float
    n: int

    def percent(self) -> str:
        """As "75 (60-86)"."""
        return f"{100 * self.mean:.0f} ({100 * self.low:.0f}-{100 * self.high:.0f})"

    def points(self) -> str:
        """Of a difference, as "+3.8 (-1..+8)"."""
        return f"{100 * self.mean:+.1f} ({100 * self.low:+.0f}..{100 * self.high:+.0f})"


def document_scores(
    records: Iterable[AnswerRecord], tasks: Sequence[str], length: int | None, pattern: str, measure: str = "score"
) -> dict[int, float]:
    """For each document of which all these tasks were answered, the mean over the tasks of the mean over the questions.

    measure: a name among the record's scores; "score" is the main one of the task
    """
    found: dict[int, dict[str, list[float]]] = {}
    for record in records:
        if record["task"] in tasks and record["length"] == length and record["pattern"] == pattern:
            found.setdefault(record["document"], {}).setdefault(record["task"], []).append(record["scores"][measure])
    return {
        document: _mean(_mean(scores) for scores in by_task.values())
        for document, by_task in sorted(found.items())
        if len(by_task) == len(tasks)
    }


def estimate(
    records: list[AnswerRecord], tasks: Sequence[str], length: int | None, pattern: str, measure: str = "score"
) -> Estimate | None:
    """What a pattern scores; None before the first answer."""
    values = list(document_scores(records, tasks, length, pattern, measure).values())
    return Estimate(_mean(values), *interval(values), len(values)) if values else None


def difference(
    records: list[AnswerRecord],
    tasks: Sequence[str],
    length: int | None,
    pair: tuple[str, str],
    measure: str = "score",
) -> Estimate | None:
    """By how much the first pattern scores more than the second, document by document."""
    first, second = (document_scores(records, tasks, length, pattern, measure) for pattern in pair)
    values = [first[document] - second[document] for document in first if document in second]
    return Estimate(_mean(values), *bounded_bootstrap(values, -1.0, 1.0), len(values)) if values else None


class ScoreTable:
    """Rows as text, ready to be printed one after another: a row for each task and length, a column for each pattern.

    Of a file's questions that are not scored by it, a second row gives the F1 of the words, which punishes long answers.
    """

    def __init__(self, cells: Iterable[Cell], patterns: Sequence[str]):
        self.patterns = patterns
        self.pair = ("wim", "llm") if {"wim", "llm"} <= set(patterns) else None
        labels = ["  token F1", *(task for cell in cells for task in cell.tasks)]
        labels += [MEAN_LABEL for cell in cells if len(several_facts(cell)) > 1]
        self.widths = [max(map(len, labels)), 6, 3, *(12 for _ in patterns), *([18] if self.pair else [])]

    def header(self) -> list[str]:
        return head(["task", "tokens", "n", *self.patterns, *([" - ".join(self.pair)] if self.pair else [])], self.widths)

    def rows(self, records: list[AnswerRecord], cell: Cell) -> list[str]:
        """A row for each of the cell's tasks, and one for the average of those that ask for several facts."""
        rows = []
        for task in cell.tasks:
            rows.append(self._row(task, records, (task,), cell.length, "score"))
            if task not in TASKS and has_word_f1(records, task):
                rows.append(self._row("  token F1", records, (task,), cell.length, "token_f1"))
        if len(several_facts(cell)) > 1:
            rows.append(self._row(MEAN_LABEL, records, several_facts(cell), cell.length, "score"))
        return rows

    def _row(self, label: str, records: list[AnswerRecord], tasks: Sequence[str], length: int | None, measure: str) -> str:
        estimates = [estimate(records, tasks, length, pattern, measure) for pattern in self.patterns]
        n = max((found.n for found in estimates if found), default=0)
        columns = [label, length_label(length), str(n), *(found.percent() if found else "" for found in estimates)]
        if self.pair:
            found = difference(records, tasks, length, self.pair, measure)
            columns.append(found.points() if found else "")
        return line(columns, self.widths)


def has_word_f1(records: Iterable[AnswerRecord], task: str) -> bool:
    """Whether the answers of a task are texts that something else than the F1 of their words is the main score of."""
    own = [record for record in records if record["task"] == task]
    return bool(own) and all(
        record.get("measure") in ("contained_match", "recall_all") and "token_f1" in record["scores"] for record in own
    )


def measures(records: Iterable[AnswerRecord], cells: Sequence[Cell]) -> list[str]:
    """A line for each measure: what the score of which tasks is."""
    by_measure: dict[str, dict[str, None]] = {}
    for record in records:
        by_measure.setdefault(record.get("measure"), {})[record["task"]] = None
    lines = [f"{', '.join(tasks)}: {MEASURES[name]}" for name, tasks in by_measure.items() if name in MEASURES]
    several = next((several_facts(cell) for cell in cells if len(several_facts(cell)) > 1), ())
    return [*lines, *([f"{MEAN_LABEL}: {', '.join(several)}"] if several else [])]


def several_facts(cell: Cell) -> tuple[str, ...]:
    return tuple(task for task in cell.tasks if task in SEVERAL_FACTS)


def length_label(length: int | None) -> str:
    return "own" if length is None else str(length)


def head(names: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The first two lines of a Markdown table."""
    return [line(names, widths), "|".join(["", *("-" * (width + 2) for width in widths), ""])]


def line(columns: Sequence[str], widths: Sequence[int]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(column.ljust(width) for column, width in zip(columns, widths, strict=True)) + " |"


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)
