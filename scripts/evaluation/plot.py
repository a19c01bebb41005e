"""Accuracy against length as a picture: a panel for each task, a line with its interval for each pattern."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evaluation.results import AnswerRecord
from evaluation.source import Cell
from evaluation.table import estimate
from model import InputError

COLUMNS = 4
DODGE = 0.06  # between the curves of two patterns, in distances between two lengths


def check_plot(path: str) -> None:
    """Raises InputError when the picture could not be written in the end."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError(
            "--plot needs matplotlib; install it, or this project with its extra: pip install '.[plot]'."
        ) from None
    kinds = Figure().canvas.get_supported_filetypes()
    if Path(path).suffix.lstrip(".") not in kinds or not Path(path).absolute().parent.is_dir():
        raise InputError(f"--plot {path} is no picture in a folder that is there; its name can end in {', '.join(kinds)}.")


def plot(records: list[AnswerRecord], cells: Sequence[Cell], patterns: Sequence[str], model: str, path: str) -> None:
    """Draw what has been answered and write it to `path`; the ending of its name says in which format.

    model: whose answers they are, for the title
    """
    from matplotlib.figure import Figure  # an extra, which only a picture needs

    lengths = sorted({cell.length for cell in cells}, key=lambda length: length or 0)
    tasks = list(dict.fromkeys(task for cell in cells for task in cell.tasks))
    rows, columns = -(-len(tasks) // COLUMNS), min(len(tasks), COLUMNS)
    figure = Figure(figsize=(1.2 + 3.2 * columns, 0.8 + 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for panel, task in zip(panels, tasks, strict=False):
        counts = set()
        for number, pattern in enumerate(patterns):
            beside = DODGE * (number - (len(patterns) - 1) / 2)  # equal curves would hide one another
            found = [(at, e) for at, length in enumerate(lengths) if (e := estimate(records, (task,), length, pattern))]
            means = [100 * e.mean for _, e in found]
            spread = [[100 * max(e.mean - e.low, 0) for _, e in found], [100 * max(e.high - e.mean, 0) for _, e in found]]
            counts |= {e.n for _, e in found}
            panel.errorbar(
                [at + beside for at, _ in found], means, yerr=spread, label=pattern, marker="o", markersize=4, capsize=3
            )
        n = "-".join(map(str, sorted({min(counts), max(counts)}))) if counts else 0
        panel.set(title=f"{task} (n = {n})", ylim=(-4, 104), xticks=range(len(lengths)), xlim=(-0.5, len(lengths) - 0.5))
        panel.set_xticklabels(["own" if length is None else f"{length:,}" for length in lengths])
        panel.grid(alpha=0.3)
    for panel in list(figure.axes)[len(tasks) :]:
        panel.set_visible(False)
    figure.axes[0].legend()
    title = model if len(model) <= 60 else f"…{model[-59:]}"
    figure.suptitle(title, parse_math=False)
    figure.supxlabel("tokens of the document")
    figure.supylabel("score in percent, with its 95% interval")
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"The picture {path} cannot be written ({error.strerror}); give another --plot.") from None
