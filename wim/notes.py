"""Which margins go into the final prompt as notes, and which of their sentences.

Nothing marks where a chunk begins in the cache, so a model may copy a sentence that stands before its chunk. If a sentence
is listed twice, it reads as if the thing had happened twice.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from model.errors import DoesNotFit
from wim.budget import Plan
from wim.chunks import SENTENCE_END, Chunk
from wim.events import Margin
from wim.prompts import one_line

SHORT = 6  # characters: what is shorter may be an abbreviation or a number, whose full stop ends no sentence


def last_prompt(plan: Plan, query: str, margins: Sequence[Margin], room: int) -> tuple[list[int], list[Margin]]:
    """The prompt's token ids, and the relevant margins that are left out because it may have only `room` tokens.

    The most probable margins stay. Those that somebody wrote, or chose against the verdict, go before them. The prompt
    lists them in the order of the document.
    Raises DoesNotFit where there is no room for the question alone.
    """
    relevant = [margin for margin in margins if margin.relevant]

    def rank(i: int) -> float:
        if (score := relevant[i].score) is not None:
            return -score
        probability = relevant[i].probability
        return -2.0 if probability is None or probability < plan.settings.threshold else -probability

    ranked = sorted(range(len(relevant)), key=rank)

    def prompt(n: int) -> list[int]:
        chosen = [relevant[i] for i in sorted(ranked[:n])]
        texts = notes(plan, chosen)
        quoted = {text for text, margin in zip(texts, chosen, strict=True) if margin.score is not None}
        return plan.prompts.answer_with_margins(query, [text for text in texts if text], quoted)

    n_noted, ids = len(relevant), prompt(len(relevant))
    if len(ids) > room:  # then as many as fit
        n_noted = bisect_right(range(1, n_noted), room, key=lambda n: len(prompt(n)))
        ids = prompt(n_noted)
    if len(ids) > room:
        raise DoesNotFit(
            f"The question needs a prompt of {len(ids)} tokens and {max(room, 0)} are left; shorten the question."
        )
    return ids, [relevant[i] for i in sorted(ranked[n_noted:])]


def notes(plan: Plan, margins: Sequence[Margin]) -> list[str]:
    """What the final prompt has of each margin; "" where earlier ones hold all that it says."""
    if plan.settings.keep_repeats:
        return [margin.text for margin in margins]
    return without_repeats([(margin.text, plan.chunks[margin.chunk]) for margin in margins])


def without_repeats(margins: Sequence[tuple[str, Chunk]]) -> list[str]:
    """The texts of margins without the sentences that an earlier one holds word for word; "" where nothing is left of one.

    margins: each with the chunk that it is about, in the order of the document

    A repeated sentence stays if the chunk says it more often than the margins before this one on the same chunk do, or if
    it is shorter than SHORT. Of a margin of which no more than such short ones is left, nothing is.
    """
    left: list[str] = []
    known: set[str] = set()
    before, said = None, ""  # the chunk of the margin before, and what has been said of it
    for margin, chunk in margins:
        said = said if chunk is before else ""
        written, read = sentences(margin), one_line(chunk.text)
        old = {
            sentence
            for sentence in written
            if (sentence in known or sentence in said) and read.count(sentence) <= said.count(sentence)
        }
        kept = [sentence for sentence in written if sentence not in old or len(sentence) < SHORT]
        left.append("" if len(kept) < len(written) and old.issuperset(kept) else " ".join(kept))
        known.update(written)
        before, said = chunk, f"{said} {one_line(margin)}"
    return left


def sentences(text: str) -> list[str]:
    """The sentences of a text, each on one line."""
    text, start, found = one_line(text), 0, []
    for end in [match.end() for match in SENTENCE_END.finditer(text)] + [len(text)]:
        if sentence := text[start:end].strip():
            found.append(sentence)
        start = end
    return found
