"""What room each pattern needs behind the document: a function for each pattern, and one that joins what they return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from wim.chunks import Chunk
from wim.prompt_ids import EMPTY, PromptIds
from wim.settings import Settings

NOTE_EDGES = 8  # tokens that a margin may cost in a prompt beyond its own: the dash, the line's end, words split anew


@dataclass(frozen=True)
class Needs:
    """What a pattern needs behind the document, in positions: the most that any of the questions takes.

    answer: the final prompt without notes, and its answer
    notes: what notes may add to that prompt
    margin_prompts: for each chunk, the prompt of its margin
    look: the prompt whose question says what to underline
    relevance, all_relevance: the prompt about one chunk in `rag`, and those of all questions together
    verdict_header, verdict: the classifier's header, and the prompt about a margin
    """

    answer: int = 0
    notes: int = 0
    margin_prompts: tuple[int, ...] = ()
    look: int = 0
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
    """Written margins, underlined sentences, or both; and the last prompt, without notes and with all there can be."""
    needs, notes, note = Needs(), [], settings.margin_tokens + NOTE_EDGES
    if settings.margins != "underlined":
        notes += [note] * len(chunks)
        prompts = tuple(max(len(ids.margin(query, chunk.beginning)) for query in queries) for chunk in chunks)
        needs = replace(needs, margin_prompts=prompts)
        if judge is not None:
            verdict = max(len(judge.verdict(query, "")) for query in queries)
            verdict += note * judge.prompts.verdict.count("{margin}")
            needs = replace(needs, verdict_header=len(judge.chat_header), verdict=verdict)
    if settings.margins != "written":
        lengths = sorted((sentence.end - sentence.start for chunk in chunks for sentence in chunk.sentences), reverse=True)
        notes += [n_tokens + NOTE_EDGES for n_tokens in lengths[: settings.underlines]]
        needs = replace(needs, look=max(len(ids.look(query)[0]) for query in [*queries, EMPTY]))
    only_quoted = {"written": [False], "underlined": [True], "both": [False, True]}[settings.margins]
    least = max(len(ids.answer_with_margins(query, [])) for query in queries)
    framed = max(len(ids.answer_with_margins(q, ["-"], ["-"] if quoted else [])) for q in queries for quoted in only_quoted)
    n_lists = max(ids.prompts.notes_template(quoted).count("{margins}") for quoted in only_quoted)
    return replace(needs, answer=least + settings.answer_tokens, notes=max(framed - least, 0) + n_lists * sum(notes))


NEEDS = {"llm": _llm, "rag": _rag, "wim": _wim}


def joined(needs: Sequence[Needs]) -> Needs:
    """The needs of patterns that share a document."""
    return Needs(**{field.name: max(getattr(each, field.name) for each in needs) for field in fields(Needs)})
