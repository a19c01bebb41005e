"""Margins beside their text as a small table, for a notebook."""

from __future__ import annotations

from collections.abc import Sequence

from cli.sources import Sources
from cli.terminal import hundredths

from report.passages import quoted, text_html
from wim.events import Margin

AROUND = 110  # characters that are shown around what a margin quotes


class Beside:
    """The margins that say something about a document, each beside the words that it is about.

    Made of tags alone, since what shows a notebook may drop their styles.
    """

    def __init__(self, margins: Sequence[Margin], sources: Sources):
        self.margins, self.sources = margins, sources

    def _repr_html_(self) -> str:
        rows = "".join(self._row(margin) for margin in self.margins if margin.relevant or margin.certainty is not None)
        titles = "".join(f"<th>{title}</th>" for title in ("chunk", "the document", "the margin", "verdict"))
        return f"<table><tr>{titles}</tr>{rows}</table>"

    def _row(self, margin: Margin) -> str:
        words = f"<b>{text_html(margin.text)}</b>" if margin.relevant else f"<s>{text_html(margin.text)}</s>"
        verdict = "✓" if margin.relevant else "✗"
        certainty = "" if margin.certainty is None else f" {hundredths(margin.certainty)}"
        cells = (str(margin.chunk + 1), self._passage(margin), words, verdict + certainty)
        drawn = "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells)
        return f"<tr>{drawn}</tr>"

    def _passage(self, margin: Margin) -> str:
        """What it quotes, and some words before and after; nothing for what it puts in words of its own."""
        parts, text = [], self.sources.text
        for start, end in quoted(self.sources, margin):
            before = text[max(0, start - AROUND) : start].partition(" ")[2]
            after = text[end : end + AROUND].rpartition(" ")[0]
            parts.append(f"… {text_html(before)}<ins>{text_html(text[start:end])}</ins>{text_html(after)} …")
        return "<br>".join(parts)
