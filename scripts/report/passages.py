"""A document as HTML: where its chunks begin, what was underlined or quoted in it, and the notes beside these places.

Everything of the document, the margins and the questions is data: it is escaped, whatever it holds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from cli.sources import Sources
from cli.terminal import hundredths

from report.recorder import Recording
from wim.budget import Plan
from wim.events import Margin
from wim.verdict import says_nothing

FOLDED_FROM = 30_000  # characters: in a longer document, what is far from every find is folded
AROUND = 700  # characters that stay around a find
LEAST_FOLD = 1_500  # characters: to fold less is not worth a line
UNHELD = re.compile("[^\\n\\t -~\\xa0-\\ud7ff\\ue000-\\U0010ffff]")  # what HTML cannot hold, or UTF-8
VERDICTS = {True: "✓ relevant", False: "✗ not relevant"}
CODE = 0.25  # of the lines are indented: a document of code


@dataclass
class Spot:
    """A margin in the document.

    anchor: its name in the page
    at: the character before which its note stands
    spans: see `quoted`
    source: its file and lines, where the document has several files
    """

    margin: Margin
    anchor: str
    question: int
    at: int
    spans: list[tuple[int, int]]
    source: str


def spots(plan: Plan, recordings: Sequence[Recording], sources: Sources) -> list[Spot]:
    """Where the margins of all the questions stand."""
    found = []
    for q, recording in enumerate(recordings, 1):
        for m, margin in enumerate(recording.done.margins, 1):
            chunk, spans = plan.chunks[margin.chunk], quoted(sources, margin)
            at = spans[0][1] if spans else chunk.text_start + len(chunk.text.rstrip())
            at += chunk.text[at - chunk.text_start :].startswith(" ")  # or that space would begin a line
            source = sources.name(margin) if len(sources.files) > 1 else ""
            found.append(Spot(margin, f"q{q}m{m}", q, at, spans, source))
    return found


def quoted(sources: Sources, margin: Margin) -> list[tuple[int, int]]:
    """The characters that a margin underlines or quotes; none where it is about its chunk as a whole."""
    chunk = sources.chunks[margin.chunk]
    return [span for span in sources.spans(margin) if span != (chunk.text_start, chunk.text_end)]


def document_html(plan: Plan, recordings: Sequence[Recording], sources: Sources) -> str:
    """The document with its chunks, marks and notes; of a long one, what is far from every find is folded."""
    text, found = sources.text, spots(plan, recordings, sources)
    page = _Page(text, found)
    for chunk in plan.chunks:
        number, first = chunk.index + 1, chunk.text_end - len(chunk.text.lstrip())
        about = f"chunk {number}: tokens {chunk.start + 1:,} to {chunk.end:,}"
        page.insert(first, f'<b class="cut" title="{about}">{number}</b><i class="tick"></i>')
    for q, recording in enumerate(recordings, 1):
        for one in recording.judged:
            verdict = _verdict(VERDICTS[one.relevant], one.probability)
            page.insert(plan.chunks[one.chunk].text_start, _note(_of([q], len(recordings)) + verdict, _yes(one.relevant)))
    for at, html in _notes(found, len(recordings), plan.settings.threshold):
        page.insert(at, html)
    read = set().union(*(recording.read for recording in recordings))
    page.unread = [(chunk.text_start, chunk.text_end) for chunk in plan.chunks if chunk.index not in read]
    parts, at = [], 0
    for start, end in [*_open(text, plan, recordings, found), (len(text), len(text) + 1)]:
        if at < start:
            names = [chunk.index + 1 for chunk in plan.chunks if chunk.text_start < start and chunk.text_end > at]
            chunks = f"chunk {names[0]}" if len(names) == 1 else f"chunks {names[0]}–{names[-1]}"
            label = f"{chunks} · {len(text[at:start].split()):,} words"
            parts.append(f"<details><summary>{label}</summary>{page.text(at, start)}</details>")
        if start < len(text):
            parts.append(page.text(start, end))
        at = end
    lines = [line for line in text.splitlines() if line.strip()]
    code = sum(line[0].isspace() for line in lines) > CODE * len(lines)
    return f'<div class="{"code" if code else "prose"}">{"".join(parts)}</div>'


class _Page:
    """A text, and the HTML that stands at some of its characters."""

    def __init__(self, text: str, found: Sequence[Spot]):
        self.whole, self.inserted, self.unread = text, {}, []
        self.marks = [(start, end, spot.margin) for spot in found for start, end in spot.spans if start < end]

    def insert(self, at: int, html: str) -> None:
        self.inserted[at] = self.inserted.get(at, "") + html

    def text(self, start: int, end: int) -> str:
        """Its characters [start, end) as a block; what stands at the very end of the text goes with the last of them."""
        borders = {*self.inserted, *(at for mark in [*self.marks, *self.unread] for at in mark[:2])}
        cuts = [start, *sorted(at for at in borders if start < at < end), end]
        parts = [self.inserted.get(a, "") + self._run(a, b) for a, b in zip(cuts, cuts[1:], strict=False)]
        last = self.inserted.get(end, "") if end == len(self.whole) else ""
        return f'<div class="text" dir="auto">{"".join(parts)}{last}</div>'

    def _run(self, start: int, end: int) -> str:
        """A piece without a border in it."""
        html = text_html(self.whole[start:end])
        margins = [margin for a, b, margin in self.marks if a <= start and end <= b]
        scores = [margin.score for margin in margins if margin.score is not None]
        if any(margin.relevant and margin.score is None for margin in margins):
            html = f"<mark>{html}</mark>"
        if scores:
            relevant = any(margin.relevant for margin in margins if margin.score is not None)
            html = f'<u class="{_yes(relevant)}" style="--score:{max(scores):.3f}">{html}</u>'
        unread = any(a <= start and end <= b for a, b in self.unread)
        return f'<span class="unread">{html}</span>' if unread else html


def _open(text: str, plan: Plan, recordings: Sequence[Recording], found: Sequence[Spot]) -> list[tuple[int, int]]:
    """What of the document is shown unfolded: all of a short one, else what surrounds the finds."""
    if len(text) <= FOLDED_FROM:
        return [(0, len(text))]
    finds = [span for spot in found if spot.margin.relevant for span in spot.spans or [(spot.at, spot.at)]]
    for recording in recordings:
        finds += [(plan.chunks[one.chunk].text_start,) * 2 for one in recording.judged if one.relevant]
    windows: list[tuple[int, int]] = []
    for start, end in sorted(finds):
        start = max(0, text.rfind("\n", 0, max(0, start - AROUND)) + 1, start - 2 * AROUND)
        end = min(len(text), end + 2 * AROUND, text.find("\n", end + AROUND) % (len(text) + 1))
        if windows and start - windows[-1][1] < LEAST_FOLD:
            windows[-1] = (windows[-1][0], max(end, windows[-1][1]))
        else:
            windows.append((start, end))
    return windows


def _notes(found: Sequence[Spot], n_questions: int, threshold: float) -> Iterator[tuple[int, str]]:
    """The margins beside their text, each with its place. Where several say nothing about a chunk, that is said once.

    An underlined sentence is not said again.
    """
    silent: dict[int, list[Spot]] = {}
    for spot in found:
        margin, underlined = spot.margin, spot.margin.score is not None
        if not (underlined or margin.relevant) and margin.certainty is None and says_nothing(margin.text):
            silent.setdefault(spot.at, []).append(spot)
            continue
        words = "" if underlined else f"<em><bdi>{text_html(margin.text)}</bdi></em> "
        said = "looked at" if underlined else VERDICTS[margin.relevant]
        judged = margin.probability is not None and not underlined
        if margin.by_hand or (judged and margin.relevant != (margin.probability >= threshold)):
            said = "✓ by hand" if margin.relevant else "✗ by hand"
        html = _of([spot.question], n_questions) + words + _verdict(said, margin.certainty, spot.source)
        yield spot.at, _note(html, _yes(margin.relevant), spot.anchor)
    for at, those in silent.items():
        of = _of([spot.question for spot in those], n_questions)
        yield at, _note(f"{of}<em><bdi>{text_html(those[0].margin.text)}</bdi></em>", "nothing")


def _verdict(said: str, certainty: float | None, source: str = "") -> str:
    meter = "" if certainty is None else f'<i class="meter" style="--p:{certainty:.3f}"></i>{hundredths(certainty)}'
    where = f'<span class="from">{text_html(source)}</span>' if source else ""
    return f'<span class="verdict">{said}{meter}</span>{where}'


def text_html(text: str) -> str:
    """Text is data: markup is shown and not obeyed, and what a page cannot hold is replaced."""
    return escape(UNHELD.sub("\N{REPLACEMENT CHARACTER}", text))


def count(n: int, thing: str) -> str:
    return f"{n:,} {thing}{'s' * (n != 1)}"


def _note(html: str, kind: str, anchor: str = "") -> str:
    name = f' id="{anchor}"' if anchor else ""
    return f'<small class="note {kind}"{name}>{html}</small>'


def _yes(relevant: bool) -> str:
    return "yes" if relevant else "no"


def _of(questions: Sequence[int], n_questions: int) -> str:
    """Which of the questions, where there are several."""
    named = f"Question{'s' * (len(questions) > 1)} {', '.join(map(str, questions))}"
    return f'<span class="of">{named}</span> ' if n_questions > 1 else ""
