"""Documents and questions from files that people have on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from model.errors import InputError
from tasks.document import Document, Question
from tasks.passages import Passage, assemble, lengthened
from tasks.published import hotpotqa, multihop_corpus, multihop_rag, squad
from tasks.records import Record, checked, filled, load_records

FORMATS = {
    "plain": "JSON or JSON lines with context, query and target (BABILong: input, question and target)",
    "hotpotqa": "the published training and distractor files of HotpotQA, or as JSON from hf.co",
    "multihop_rag": "MultiHopRAG.json of MultiHop-RAG, with its corpus.json",
    "squad": "the published files of SQuAD 1.1 and 2.0, or as JSON from hf.co",
}


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
        questions (not for "plain"); questions whose own passages are longer are left out
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
    if format == "plain":
        if n_tokens is not None:
            raise InputError(f"A length of {n_tokens} tokens is asked for, but 'plain' documents have their own; omit it.")
        yield from [_plain(record) for record in records]  # all of them first: a wrong one is told before work begins
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
    return "plain"


def _plain(record: Record) -> Document:
    """The document of a record that holds a text, a question on it and the target.

    Such are the records of BABILong (Kuratov et al. 2024, arXiv 2406.10149; fields input, question, target), the examples
    published with Writing in the Margins (github.com/writer/writing-in-the-margins; context, query, target), and others
    like them. A target that is a list makes the answer a list; a number is taken as its digits.
    """
    text = record.text("context", "input")
    query = record.text("query", "question").strip()
    name = record.name("target", "answer")
    value, where = record.value[name], f"{record.where}, field {name!r}"
    target: str | tuple[str, ...]
    if isinstance(value, list) and value:
        places = [f"{record.where}, {name}[{i}]" for i in range(len(value))]
        target = tuple(filled(checked(item, str, place), place).strip() for item, place in zip(value, places, strict=True))
    else:
        value = str(value) if type(value) is int else value
        target = filled(checked(value, str, where), where).strip()
    return Document(text, (Question("plain", query, target),))
