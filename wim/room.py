"""Is there room for a question that nobody had thought of when the room was planned?"""

from __future__ import annotations

from dataclasses import replace

from model.errors import InputError
from wim.budget import Plan
from wim.needs import NEEDS


def check_question(plan: Plan, query: str, pattern: str) -> None:
    """Raises InputError, with the numbers, where the question's prompts do not fit what `plan` has made room for."""
    if pattern not in NEEDS:
        raise ValueError(f"There is no pattern {pattern!r}.")
    if query in plan.queries:
        return
    needs = NEEDS[pattern](plan.prompts, plan.classifier_prompts, [query], plan.settings, plan.chunks)
    # A plan for several patterns has room for margins, of which this one may write none.
    margin_tokens = plan.margin_tokens if needs.margin_prompts else []
    alone = replace(plan, needs=replace(needs, notes=0), margin_tokens=margin_tokens)
    header, margins = len(plan.prompts.header), zip(plan.chunks, needs.margin_prompts, plan.margin_tokens, strict=False)
    pairs = [
        (alone.min_length, min(plan.max_length, plan.capacity)),
        (alone.capacity, plan.capacity),
        (alone.verdict_capacity, plan.verdict_capacity),
        *((header + chunk.end + n_prompt + n, plan.context_length) for chunk, n_prompt, n in margins if n),
    ]
    needed, there = max(pairs, key=lambda pair: pair[0] - pair[1])
    if needed > there:
        raise InputError(
            f"The question has {len(plan.prompts.tokenizer.encode(query))} tokens and was not planned for: with it the run "
            f"needs {needed} positions and has {there}; shorten it, or name it when the document is opened."
        )
