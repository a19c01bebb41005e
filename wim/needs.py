"""What room each pattern needs behind the document, in positions: the most that any of the questions takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from wim.chunks import Chunk
from wim.prompt_ids import PromptIds
from wim.settings import Settings

NOTE_EDGES = 8  # tokens that a margin may cost in a prompt beyond its own: the dash, the line's end, words split anew


@dataclass(frozen=True)
class Needs:
    """What a pattern needs behind the document, in positions: the most that any of the questions takes.

    answer: the last prompt without notes, and its answer
    notes: what notes may add to that prompt
    margin_prompts: for each chunk, the prompt of its margin
    relevance, all_relevance: the prompt about one chunk in `rag`, and those of all questions together
    verdict: the prompt about a margin, after the header
    """

    answer: int = 0
    notes: int = 0
    margin_prompts: tuple[int, ...] = ()
    relevance: int = 0
    all_relevance: int = 0
    verdict: int = 0


def llm_needs(ids: PromptIds, queries: list[str], settings: Settings) -> Needs:
    return Needs(answer=max(len(ids.answer(query)) for query in queries) + settings.answer_tokens)


def rag_needs(ids: PromptIds, queries: list[str], settings: Settings) -> Needs:
    relevance = max(len(ids.relevance(query)) for query in queries)
    return replace(llm_needs(ids, queries, settings), relevance=relevance, all_relevance=len(queries) * relevance)


def wim_needs(
    ids: PromptIds, judge: PromptIds | None, queries: list[str], settings: Settings, chunks: list[Chunk]
) -> Needs:
    note = settings.margin_tokens + NOTE_EDGES
    n_lists = ids.prompts.answer_with_margins.count("{margins}")
    verdicts = [len(judge.verdict(query, "")) for query in queries] if judge is not None else []
    return Needs(
        answer=max(len(ids.answer_with_margins(query, [])) for query in queries) + settings.answer_tokens,
        notes=len(chunks) * note * n_lists,
        margin_prompts=tuple(max(len(ids.margin(query, chunk.beginning)) for query in queries) for chunk in chunks),
        verdict=max(verdicts) + note * judge.prompts.verdict.count("{margin}") if verdicts else 0,
    )


def joined(needs: Sequence[Needs]) -> Needs:
    """Those of patterns that share a document."""
    return Needs(**{field.name: max(getattr(each, field.name) for each in needs) for field in fields(Needs)})
