"""The cache's length over a run as an SVG: a row for each chunk that is read, and what was forgotten behind it.

A row is the tensor of model/cache.py from its first position to its last: what it held, what was read now, and, in colour,
the prompt and the margin that the next rollback forgot.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from report.recorder import Step

WIDTH = 1000
LEAST = 3  # units of the width: what is narrower could not be seen
# Light, and dark: for an SVG on its own. A page gives the colours of its own style.
COLOURS = {
    "free": ("#efece4", "#26241f"),
    "kept": ("#cfc9bb", "#4a463d"),
    "chunk": ("#6f6a5f", "#a39c8c"),
    "prompt": ("#e3a98f", "#8c5038"),
    "margin": ("#b3401f", "#f08a5d"),
    "final": ("#a3c3d9", "#3f6783"),
    "answer": ("#1f5f8b", "#7fb7e0"),
}
CLASSES = {"header": "chunk", "judged": "chunk", "branch": "margin"}  # of kinds that are drawn as others are


class Strip:
    """What `strip` draws, as a notebook shows it."""

    def __init__(self, steps: Sequence[Step], capacity: int):
        self.steps, self.capacity = steps, capacity

    def _repr_svg_(self) -> str:
        return strip(self.steps, self.capacity)


def strip(steps: Sequence[Step], capacity: int, *, labelled: bool = True) -> str:
    """An SVG of a recording's steps.

    capacity: positions of the cache
    labelled: with words, numbers and colours of its own, to stand alone; else it fills the width that a page gives it
    """
    rows = [list(row) for _, row in groupby((step for step in steps if step.row >= 0), key=lambda step: step.row)]
    tall = 18 if labelled else max(1.0, min(12.0, 280 / max(1, len(rows))))
    gap, left, right = (4 if labelled else tall / 5 if tall > 4 else 0), (86 if labelled else 0), (150 if labelled else 0)
    unit = (WIDTH - left - right) / max(1, capacity)
    height = round(len(rows) * tall, 2)
    drawn = []
    for y, row in enumerate(rows):
        bars = [("free", 0, capacity), ("kept", 0, row[0].start)]
        bars += [(CLASSES.get(step.kind, step.kind), step.start, step.end) for step in row if step.kind != "rollback"]
        inside = f"<title>{name(row)}: {told(row)}</title>"
        for kind, start, end in bars:
            if start < end:
                x, width = left + start * unit, max((end - start) * unit, LEAST)
                inside += f'<rect class="{kind}" x="{x:.2f}" width="{width:.2f}" height="{tall - gap:.2f}"/>'
        if labelled:
            middle = (tall - gap) / 2
            inside += f'<text x="{left - 8}" y="{middle}" text-anchor="end">{name(row)}</text>'
            inside += f'<text x="{WIDTH - right + 8}" y="{middle}">{told(row)}</text>'
        drawn.append(f'<g transform="translate(0 {y * tall:.2f})">{inside}</g>')
    style = f"<style>{_style()}</style>" if labelled else ""
    shape = f'viewBox="0 0 {WIDTH} {height}"' + ("" if labelled else f' preserveAspectRatio="none" height="{height}"')
    return f'<svg xmlns="http://www.w3.org/2000/svg" class="strip" role="img" {shape}>{style}{"".join(drawn)}</svg>'


def name(row: Sequence[Step]) -> str:
    chunk = next((step.chunk for step in row if step.chunk is not None), None)
    return "answer" if chunk is None else f"chunk {chunk + 1}"


def told(row: Sequence[Step]) -> str:
    """The lengths that a row went through, or how long the margin beside the cache became."""
    if row[0].kind == "branch":
        return f"{row[0].start:,} | +{row[0].end - row[0].start:,}"
    most = max(max(step.start, step.end) for step in row)
    return f"{most:,} → {row[-1].end:,}" if row[-1].kind == "rollback" else f"{most:,}"


def _style() -> str:
    def rules(shade: int) -> str:
        return "".join(f".strip .{kind}{{fill:{colours[shade]}}}" for kind, colours in COLOURS.items())

    text = "text{font:11px ui-sans-serif,system-ui,sans-serif;dominant-baseline:central;fill:#6f6a5f}"
    return f"{text}{rules(0)}@media(prefers-color-scheme:dark){{text{{fill:#a39c8c}}{rules(1)}}}"
