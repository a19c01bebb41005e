"""Documents and questions from files that people have on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from model.errors import InputError
from tasks.document import Document
from tasks.passages import Passage, assemble, lengthened
from tasks.published import hotpotqa, multihop_corpus, multihop_rag, squad
from tasks.records import Record, load_records
from tasks.whole_texts import longbench, longbench_v2, plain, ruler

FORMATS = {
    "plain": "JSON or JSON lines with context, query and target or answers (BABILong: input, question and target)",
    "hotpotqa": "the published training and distractor files of HotpotQA, or as JSON from hf.co",
    "multihop_rag": "MultiHopRAG.json of MultiHop-RAG, with its corpus.json",
    "squad": "the published files of SQuAD 1.1 and 2.0, or as JSON from hf.co",
    "longbench": "the question-answering files of LongBench",
    "longbench_v2": "data.json of LongBench v2",
    "ruler": "the files that RULER generates",
}
WHOLE_TEXTS = {"plain": plain, "longbench": longbench, "longbench_v2": longbench_v2, "ruler": ruler}


def read_examples(
    path: str | Path,
    format: str | None = None,
    *,
    corpus: str | Path | None = None,
    n_tokens: int | None = None,
    count_tokens: Callable[[str], int] | None = None,
    seed: int = 0,
) -> Iterator[Document]:
    """The documents of a file, one at a time. What is wrong with the file is told when the first one is asked for.

    format: one of FORMATS; None to go by the fields of the first record
    corpus: the file of MultiHop-RAG's articles; None for corpus.json beside the file
    n_tokens: lengthen every document to about so many tokens, as `count_tokens` counts them, with passages of other
        questions (not for WHOLE_TEXTS); questions whose own passages are longer are left out
    seed: chooses and mixes these passages
    Raises InputError when the file cannot be read, or a record lacks something; the message names the file, the record
    and the field.
    """
    if format is not None and format not in FORMATS:
        raise InputError(f"There is no format {format!r}; choose among {', '.join(FORMATS)}.")
    if n_tokens is not None and count_tokens is None:
        raise TypeError("n_tokens needs count_tokens")
    records = load_records(path)
    format = format or _guess(records[0])
    if format in WHOLE_TEXTS:
        if n_tokens is not None:
            raise InputError(
                f"A length of {n_tokens} tokens is asked for, but {format!r} documents have their own; omit it."
            )
        # All of them first: a wrong one is told before work begins.
        yield from [WHOLE_TEXTS[format](record) for record in records]
        return

    pool: list[Passage] = []
    if format == "multihop_rag":
        articles = multihop_corpus(corpus if corpus is not None else default_corpus(path))
        pool = list(articles.values())
        examples = list(multihop_rag(records, articles))
    else:
        examples = list((hotpotqa if format == "hotpotqa" else squad)(records))
        pool = list(dict.fromkeys(passage for example in examples for passage in example.passages))
    asked = [example for example in examples if example.questions]
    if n_tokens is None or count_tokens is None:
        documents = (assemble(example, example.passages) for example in asked if example.passages)
    else:
        documents = lengthened(asked, pool, n_tokens, count_tokens, seed)
    found = False
    for document in documents:
        found = True
        yield document
    if not found:
        limit = "" if n_tokens is None else f" that fits in {n_tokens} tokens"
        raise InputError(f"The file {str(path)!r} has no question with passages{limit}; allow more or give another file.")


def default_corpus(path: str | Path) -> Path:
    """Where the articles of MultiHop-RAG are looked for: beside the file of its questions."""
    return Path(path).parent / "corpus.json"


def _guess(first: Record) -> str:
    """The format that a file's first record has."""
    if first.has("data") or isinstance(first.value.get("answers"), dict):
        return "squad"
    if first.has("evidence_list"):
        return "multihop_rag"
    if first.has("supporting_facts") or isinstance(first.value.get("context"), list):
        return "hotpotqa"
    if first.has("choice_A"):
        return "longbench_v2"
    if first.has("outputs") and first.has("input"):
        return "ruler"
    if (
        first.has("answers")
        and first.has("input")
        and first.has("context")
        and not (first.has("query") or first.has("question"))
    ):
        return "longbench"
    return "plain"
