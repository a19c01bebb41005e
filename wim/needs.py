"""What room each pattern needs behind the document: a function for each pattern, and one that joins what they return."""

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

    answer: the final prompt without notes, and its answer
    notes: what notes may add to that prompt
    margin_prompts: for each chunk, the prompt of its margin
    relevance, all_relevance: the prompt about one chunk in `rag`, and those of all questions together
    verdict_header, verdict: the classifier's header, and the prompt about a margin
    """

    answer: int = 0
    notes: int = 0
    margin_prompts: tuple[int, ...] = ()
    relevance: int = 0
    all_relevance: int = 0
    verdict_header: int = 0
    verdict: int = 0


def _llm(ids: PromptIds, judge: PromptIds | None, queries: list[str], settings: Settings, chunks: list[Chunk]) -> Needs:
    return Needs(answer=max(len(ids.answer(query)) for query in queries) + settings.answer_tokens)


def _rag(ids: PromptIds, judge: PromptIds | None, queries: list[str], settings: Settings, chunks: list[Chunk]) -> Needs:
    relevance = max(len(ids.relevance(query)) for query in queries)
    return replace(_llm(ids, judge, queries, settings, chunks), relevance=relevance, all_relevance=len(queries) * relevance)


def _wim(ids: PromptIds, judge: PromptIds | None, queries: list[str], settings: Settings, chunks: list[Chunk]) -> Needs:
    note = settings.margin_tokens + NOTE_EDGES
    needs = Needs(
        answer=max(len(ids.answer_with_margins(query, [])) for query in queries) + settings.answer_tokens,
        notes=len(chunks) * note * ids.prompts.answer_with_margins.count("{margins}"),
        margin_prompts=tuple(max(len(ids.margin(query, chunk.beginning)) for query in queries) for chunk in chunks),
    )
    if judge is None:
        return needs
    verdict = max(len(judge.verdict(query, "")) for query in queries) + note * judge.prompts.verdict.count("{margin}")
    return replace(needs, verdict_header=len(judge.chat_header), verdict=verdict)


NEEDS = {"llm": _llm, "rag": _rag, "wim": _wim}


def joined(needs: Sequence[Needs]) -> Needs:
    """The needs of patterns that share a document."""
    return Needs(**{field.name: max(getattr(each, field.name) for each in needs) for field in fields(Needs)})
