"""How far an evaluation is and how long it will take, on stderr."""

from __future__ import annotations

import sys

from tqdm import tqdm

from evaluation.results import Results
from evaluation.source import Cell, Source


class Progress:
    """A bar whose length counts document tokens, once for each answer: longer documents take longer."""

    def __init__(
        self,
        cells: tuple[Cell, ...],
        source: Source,
        n_documents: int,
        patterns: tuple[str, ...],
        results: Results,
    ):
        # How many documents a file has, and how many questions each, is not known yet; `end` corrects the total.
        self.missing = {cell: n_documents * len(cell.tasks) * source.questions_each(cell) * len(patterns) for cell in cells}
        total = sum(self._weight(cell) * n for cell, n in self.missing.items())
        cell_of = {(task, cell.length): cell for cell in cells for task in cell.tasks}
        for task, length, document, question, pattern in results.records:
            asked = document < n_documents and question < source.questions and pattern in patterns
            if asked and (task, length) in cell_of:
                self.missing[cell_of[task, length]] -= 1
        left = sum(self._weight(cell) * n for cell, n in self.missing.items())
        self.bar = tqdm(
            total=total,
            initial=total - left,
            smoothing=0,  # the time left by the mean rate: documents differ
            mininterval=0.1 if sys.stderr.isatty() else 30,
            file=sys.stderr,
            dynamic_ncols=True,
            bar_format="{desc}{percentage:3.0f}% |{bar}| {elapsed}, {remaining} left",
        )

    def begin(self, cell: Cell, number: int) -> None:
        self.bar.set_description(f"{_name(cell)}, document {number + 1}", refresh=False)

    def answered(self, cell: Cell) -> None:
        self.missing[cell] -= 1
        self.bar.update(self._weight(cell))

    def end(self, cell: Cell) -> None:
        if self.missing[cell]:
            self.bar.total -= self._weight(cell) * self.missing[cell]
            self.bar.refresh()

    def print(self, line: str) -> None:
        """A line on stdout, above the bar."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        self.bar.close()

    @staticmethod
    def _weight(cell: Cell) -> int:
        return cell.length or 1


def _name(cell: Cell) -> str:
    tasks = cell.tasks[0] if len(cell.tasks) == 1 else f"{cell.tasks[0]} … {cell.tasks[-1]}"
    return tasks if cell.length is None else f"{tasks}, {cell.length} tokens"
