"""How good margins and verdicts are, where the evidence of the questions is known: two tables, beside that of scores.

A note of another kind (a sentence that is only marked, say) has a text, a score and whether it was kept as well, so it can
be counted by `NoteCounts` too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tasks import NO_EVIDENCE
from tasks.notes import area_under_curve, says_nothing

from evaluation.results import AnswerRecord
from evaluation.source import Cell
from evaluation.table import head, length_label, line


@dataclass
class NoteCounts:
    """What is counted over all notes of some questions. Notes that say that there is nothing count nowhere.

    kept: of useful and of useless notes, whether each went into the final prompt
    scores: of useful and of useless notes, the probability that its verdict gave
    evidence, found: how many sentences bear on the questions, and how many of these are in notes that were kept
    """

    kept: dict[bool, list[bool]] = field(default_factory=lambda: {True: [], False: []})
    scores: dict[bool, list[float]] = field(default_factory=lambda: {True: [], False: []})
    evidence: int = 0
    found: int = 0

    def add(self, useful: bool, kept: bool, score: float | None) -> None:
        self.kept[useful].append(kept)
        if score is not None:
            self.scores[useful].append(score)

    @property
    def area(self) -> float | None:
        """Under the curve of the scores, useful against useless notes; None where there are not both."""
        return area_under_curve(self.scores[True], self.scores[False])


def count_notes(records: Iterable[AnswerRecord], task: str, length: int | None) -> NoteCounts:
    """The margins of the answers of a task whose evidence is known."""
    counts = NoteCounts()
    for record in _chosen(records, task, length):
        counts.evidence += record.get("evidence", 0)
        counts.found += record.get("evidence_found", 0)
        for margin in record.get("margins", ()):
            if margin.get("useful") is not None and not says_nothing(margin["text"]):
                counts.add(margin["useful"], margin["relevant"], margin["probability"])
    return counts


def count_right(records: Iterable[AnswerRecord], task: str, length: int | None) -> dict[str, tuple[int, int]]:
    """How many are right, of how many: margins of chunks with and without evidence (word for word), verdicts on margins,
    and `rag`'s on chunks (relevant if and only if there is evidence)."""
    right: dict[str, list[bool]] = {name: [] for name in ("with", "without", "verdicts", "chunks")}
    for record in _chosen(records, task, length):
        for margin in record.get("margins", ()):
            if margin["gold"] is not None:
                right["without" if margin["gold"] == NO_EVIDENCE else "with"].append(margin["word_for_word"])
                if margin["probability"] is not None:
                    right["verdicts"].append(margin["verdict_right"])
        right["chunks"] += [c["verdict_right"] for c in record.get("chunks", ()) if c["verdict_right"] is not None]
    return {name: (sum(values), len(values)) for name, values in right.items()}


def right_table(records: list[AnswerRecord], cells: Iterable[Cell]) -> list[str]:
    """How many margins and verdicts are right, a row for each task and length whose evidence is known."""
    rows = []
    for task, length in _tasks(cells):
        counts = count_right(records, task, length)
        if any(n for _, n in counts.values()):
            rows.append([task, length_label(length), *(_share(*found) for found in counts.values())])
    return _table(["task", "tokens", "with evidence", "without", "verdicts", "rag: chunks"], rows)


def note_table(records: list[AnswerRecord], cells: Iterable[Cell]) -> list[str]:
    """How much the notes help, a row for each task and length whose evidence is known."""
    rows = []
    for task, length in _tasks(cells):
        counts = count_notes(records, task, length)
        if counts.evidence:
            kept = [_share(sum(counts.kept[useful]), len(counts.kept[useful])) for useful in (True, False)]
            area = "" if counts.area is None else f"{counts.area:.2f}"
            rows.append([task, length_label(length), _share(counts.found, counts.evidence), *kept, area])
    return _table(["task", "tokens", "evidence found", "useful kept", "useless kept", "AUC"], rows)


def _chosen(records: Iterable[AnswerRecord], task: str, length: int | None) -> list[AnswerRecord]:
    return [record for record in records if record["task"] == task and record["length"] == length]


def _tasks(cells: Iterable[Cell]) -> list[tuple[str, int | None]]:
    return [(task, cell.length) for cell in cells for task in cell.tasks]


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in [names, *rows]) for i in range(len(names))]
    return [*head(names, widths), *(line(row, widths) for row in rows)] if rows else []


def _share(right: int, n: int) -> str:
    return f"{100 * right / n:.0f} ({right}/{n})" if n else ""
