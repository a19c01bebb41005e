"""What a page says of one question: the answer, what it was made of, what it took, and the cache meanwhile."""

from __future__ import annotations

import json
from pathlib import Path
from string import Template

from cli.sources import Sources
from cli.terminal import hundredths

from report.passages import count, text_html
from report.recorder import Recording, Step
from report.strip import strip
from wim.budget import Plan
from wim.events import Margin

LONG_ANSWER = 80  # characters: from here on, it is set as text and not as a headline
MANY = 48  # chunks: lines between so many would fill the strip
# Rows of the table: the phase in Done.seconds, its name, and the counts of tokens that belong to it.
PHASES = (
    ("prefill", "reading", ("document",)),
    ("margins", "margins", ("margins",)),
    ("verdicts", "verdicts", ("verdicts",)),
    ("answer", "answer", ("final_prompt", "answer")),
)
# What the strip says at each step, and the colours that it has: those of page.css.
SAID = {
    "header": "header",
    "chunk": "reading chunk {}",
    "judged": "judging chunk {}",
    "prompt": "asking about chunk {}",
    "margin": "margin on chunk {}",
    "branch": "margin on chunk {}, as a branch",
    "final": "the final prompt",
    "answer": "the answer",
    "rollback": "rolled back",
}
LEGEND = (
    ("chunk", "read", {"chunk", "judged"}),
    ("kept", "read before", {"chunk", "judged", "branch", "final"}),
    ("prompt", "a margin’s prompt", {"prompt"}),
    ("margin", "a margin", {"margin", "branch"}),
    ("final", "the final prompt", {"final"}),
    ("answer", "the answer", {"answer"}),
)


def question_html(plan: Plan, recording: Recording, sources: Sources, number: int, of: int) -> str:
    """number: of the question, among `of` questions"""
    done, steps, capacity = recording.done, recording.steps, plan.capacity
    stopped = plan.settings.pattern != "rag" and len(recording.read) < len(plan.chunks)
    ended = f"Answered after {len(recording.read)} of {count(len(plan.chunks), 'chunk')}: the reading was stopped."
    kinds = {step.kind for step in steps if step.row >= 0}
    caption = "Each row is the cache after one more step, from top to bottom."
    if "rollback" in kinds:
        caption += " What is in colour was rolled back: the length moves, and no byte does."
    if "branch" in kinds:
        caption += " Margins on chunks further back are branches: each sees the cache up to its chunk, and no length moves."
    return Template(Path(__file__).with_name("question.html").read_text(encoding="utf-8")).substitute(
        number=number,
        kicker=f'<p class="kicker">Question {number}</p>' if of > 1 else "",
        query=text_html(recording.query),
        length="none" if not done.answer else "long" if len(done.answer) > LONG_ANSWER else "short",
        answer=text_html(done.answer) or "(no answer)",
        stopped=f'<p class="stopped">{ended}</p>' if stopped else "",
        phases=_phases(recording),
        made_of=_made_of(plan, recording),
        notes=_notes(recording, sources, number),
        positions=f"{capacity:,}",
        capacity=capacity,
        many="many" if len(plan.chunks) > MANY else "",
        steps=text_html(json.dumps([_numbers(step) for step in steps])),
        parts="".join(_part(step, capacity) for step in steps),
        strip=strip(steps, capacity, labelled=False),
        legend="".join(f'<span><b class="{kind}"></b>{name}</span> ' for kind, name, where in LEGEND if where & kinds),
        caption=caption,
    )


def _made_of(plan: Plan, recording: Recording) -> str:
    n_read = len(recording.read)
    what = "The document" if n_read == len(plan.chunks) else f"Of the document {count(n_read, 'chunk')}"
    n_tokens = sum(len(plan.chunks[chunk].ids) for chunk in recording.read)
    n_notes = sum(bool(text) for _, text in recording.notes)
    notes = f", {count(n_notes, 'note') if n_notes else 'no notes'}" if plan.settings.pattern == "wim" else ""
    return f"{what}, {count(n_tokens, 'token')}{notes}, and the question."


def _notes(recording: Recording, sources: Sources, question: int) -> str:
    """The lines of the final prompt, and what was relevant and is not in it; each leads to its place in the document."""
    numbers = {id(margin): number for number, margin in enumerate(recording.done.margins, 1)}

    def line(margin: Margin, text: str) -> str:
        about = [f"chunk {margin.chunk + 1}", sources.name(margin)] if not margin.by_hand else ["by hand"]
        about += [hundredths(margin.certainty)] if margin.certainty is not None else []
        link = f'<a href="#q{question}m{numbers[id(margin)]}"><bdi>{text_html(text)}</bdi></a>'
        return f'<li>{link} <span class="from">{text_html(" · ".join(about))}</span></li>'

    html = ""
    for title, found in (
        ("", [(margin, text) for margin, text in recording.notes if text]),
        ("Relevant, but left out: there was no room", [(margin, margin.text) for margin in recording.done.left_out]),
        ("Relevant, but said before", [(margin, margin.text) for margin, text in recording.notes if not text]),
    ):
        lines = "".join(line(*one) for one in found)
        if lines:
            html += f'<h3>{title}</h3><ol class="notes out">{lines}</ol>' if title else f'<ol class="notes">{lines}</ol>'
    return html


def _phases(recording: Recording) -> str:
    """Rows of the table, the last of which adds up the others."""
    done, total, rows = recording.done, sum(recording.done.seconds.values()), []
    for phase, name, counts in PHASES:
        seconds, n_tokens = done.seconds.get(phase, 0.0), [done.tokens.get(counted, 0) for counted in counts]
        if seconds or any(n_tokens):
            rows.append((name, seconds, " + ".join(f"{n:,}" for n in n_tokens if n)))
    rows.append(("all", total, f"{sum(done.tokens.values()):,}"))
    return "\n".join(
        f'<tr><td>{name}</td><td class="share"><i style="width:{100 * seconds / total if total else 0:.1f}%"></i></td>'
        f"<td>{n_tokens}</td><td>{seconds:.2f}</td></tr>"
        for name, seconds, n_tokens in rows
    )


def _numbers(step: Step) -> list[int | float | str | None]:
    """What page.js knows of a step."""
    until = None if step.until is None else round(step.until, 4)
    return [step.start, step.end, round(step.began, 4), round(step.ended, 4), until, step.row, step.kind]


def _part(step: Step, capacity: int) -> str:
    """A step's place in the strip, which it fills in the end if nothing took it back."""
    stays = step.until is None and step.kind not in ("branch", "rollback")
    width, left = (100 * n / capacity for n in (step.end - step.start if stays else 0, step.start))
    said = SAID[step.kind].format("" if step.chunk is None else step.chunk + 1)
    return f'<i class="{step.kind}" style="left:{left:.3f}%;width:{width:.3f}%" title="{said}"></i>'
