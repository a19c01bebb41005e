"""The last prompt of the pattern `wim`: which margins it holds as notes."""

from __future__ import annotations

from collections.abc import Sequence

from model.errors import DoesNotFit
from wim.budget import Plan
from wim.events import Margin
from wim.repeats import without_repeats


def last_prompt(plan: Plan, query: str, margins: Sequence[Margin], room: int) -> tuple[list[int], list[Margin]]:
    """The prompt's token ids, and the relevant margins that are left out because it may have only `room` tokens.

    The most probable margins stay, and before them those that somebody wrote, or chose against the verdict; in the prompt
    they stand in the order of the document.
    Raises DoesNotFit where there is no room for the question alone.
    """
    relevant = [margin for margin in margins if margin.relevant]

    def rank(i: int) -> float:
        probability = relevant[i].probability
        return -1.0 if probability is None or probability < plan.settings.threshold else -probability

    ranked = sorted(range(len(relevant)), key=rank)

    def prompt(n: int) -> list[int]:
        chosen = [relevant[i] for i in sorted(ranked[:n])]
        notes = [margin.text for margin in chosen]
        if not plan.settings.keep_repeats:
            notes = list(without_repeats((margin.text, plan.chunks[margin.chunk]) for margin in chosen))
        return plan.prompts.answer_with_margins(query, notes)

    fits, too_many = 0, len(relevant) + 1
    while too_many - fits > 1:
        n = len(relevant) if too_many > len(relevant) else (fits + too_many) // 2  # nearly always they all fit
        fits, too_many = (n, too_many) if len(prompt(n)) <= room else (fits, n)
    ids = prompt(fits)
    if len(ids) > room:
        raise DoesNotFit(
            f"The question needs a prompt of {len(ids)} tokens and {max(room, 0)} are left; shorten the question."
        )
    return ids, [relevant[i] for i in sorted(ranked[fits:])]
