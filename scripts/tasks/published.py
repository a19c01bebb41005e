"""The published files of HotpotQA, MultiHop-RAG and SQuAD, each read into examples of passages and questions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from model.errors import InputError
from tasks.document import Span
from tasks.passages import Example, Passage, PassageQuestion
from tasks.records import Record, checked, filled, load_records
from tasks.sentences import sentence_around


def hotpotqa(records: Sequence[Record]) -> Iterator[Example]:
    """HotpotQA (Yang et al. 2018, arXiv 1809.09600), the train and the distractor files of hotpotqa.github.io.

    A list of records with the fields question, answer, context (a list of [title, sentences]) and supporting_facts (a
    list of [title, sentence number]), as the README of github.com/hotpotqa/hotpot says; or, as hf.co/datasets/hotpot_qa
    has them, with the two columns of each list (title and sentences, title and sent_id). A passage is a title, a line
    end and the sentences. A supporting fact beyond the sentences (the published files have some) is left out.
    """
    for record in records:
        passages: list[Passage] = []
        spans: dict[tuple[str, int], tuple[int, Span]] = {}
        for index, (where, title, sentences) in enumerate(_pairs(record, "context", "title", "sentences")):
            text = checked(title, str, f"{where}, title") + "\n"
            for number, sentence in enumerate(checked(sentences, list, f"{where}, sentences")):
                stripped = checked(sentence, str, f"{where}, sentence {number}").strip()
                if stripped:
                    text += " " if number else ""
                    spans[title, number] = (index, (len(text), len(text) + len(stripped)))
                    text += stripped
            passages.append(Passage(text, filled(text, where)))  # other records may cut a page of this title differently
        facts = [
            (checked(title, str, where), checked(number, int, where))
            for where, title, number in _pairs(record, "supporting_facts", "title", "sent_id")
        ]
        evidence = tuple(spans[fact] for fact in dict.fromkeys(facts) if fact in spans)
        question = PassageQuestion(record.text("question"), record.text("answer"), evidence)
        yield Example("hotpotqa", tuple(passages), (question,))


def _pairs(record: Record, name: str, first: str, second: str) -> Iterator[tuple[str, Any, Any]]:
    """A field that is a list of pairs, or an object of two lists; with where each pair stands."""
    if isinstance(record.value.get(name), dict):
        columns = Record(record.value[name], f"{record.where}, {name}")
        firsts, seconds = columns.get(first, kind=list), columns.get(second, kind=list)
        if len(firsts) != len(seconds):
            raise InputError(
                f"{columns.where}: {first!r} has {len(firsts)} entries and {second!r} {len(seconds)}; correct it."
            )
        for index, (one, other) in enumerate(zip(firsts, seconds, strict=True)):
            yield f"{record.where}, {name}[{index}]", one, other
        return
    for index, entry in enumerate(record.get(name, kind=list)):
        where = f"{record.where}, {name}[{index}]"
        if len(checked(entry, list, where)) != 2:
            raise InputError(f"{where}: a list of {len(entry)} entries is not [{first}, {second}]; correct it.")
        yield where, *entry


def multihop_corpus(path: str | Path) -> dict[str, Passage]:
    """The articles of MultiHop-RAG's corpus.json by their url: objects with title, url, body and more.

    Questions name sources and dates, so a passage begins with the title and, where they are there, these two.
    """
    articles = {}
    for record in load_records(path):
        lines = [record.get("title", kind=str)]
        lines += [record.get(name, kind=str) for name in ("source", "published_at") if record.has(name)]
        url = record.get("url", kind=str)
        text = "\n".join(lines) + "\n\n" + record.get("body", kind=str).strip()
        articles[url] = Passage(url, filled(text, record.where))
    return articles


def multihop_rag(records: Sequence[Record], corpus: dict[str, Passage]) -> Iterator[Example]:
    """MultiHop-RAG (Tang and Yang 2024, arXiv 2401.15391), MultiHopRAG.json of hf.co/datasets/yixuantt/MultiHopRAG.

    A list of records with the fields query, answer and evidence_list (objects with the url of an article of the corpus
    and a fact from it). The passages are the articles of the evidence; a null query has none. Evidence are the facts
    that stand in the article word for word.
    """
    for record in records:
        passages: list[Passage] = []
        evidence: dict[tuple[int, Span], None] = {}
        for fact in record.children("evidence_list"):
            url = fact.get("url", kind=str)
            if url not in corpus:
                raise InputError(f"{fact.where}: the corpus has no article {url!r}; give the corpus file of these queries.")
            if corpus[url] not in passages:
                passages.append(corpus[url])
            text = fact.get("fact", kind=str).strip()
            start = corpus[url].text.find(text)
            if start >= 0 and text:
                evidence[passages.index(corpus[url]), (start, start + len(text))] = None
        question = PassageQuestion(record.text("query"), record.text("answer"), tuple(evidence))
        yield Example("multihop_rag", tuple(passages), (question,))


def squad(records: Sequence[Record]) -> Iterator[Example]:
    """SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016 and 2018, arXiv 1606.05250 and 1806.03822).

    The files of rajpurkar.github.io/SQuAD-explorer: the field data is a list of articles; an article has paragraphs; a
    paragraph has a context and qas; each of these has a question and answers; an answer has a text and answer_start, the
    character of the context where it starts. Or, as hf.co/datasets/rajpurkar/squad has them, one record for each
    question, with its context, and the two columns of the answers. Questions that cannot be answered (is_impossible, or
    no answers) and blank ones are left out. The evidence is the sentence around the first answer; the other answers are
    alternatives.
    """
    for record in records:
        if not record.has("data"):
            yield _paragraph(record.text("context"), [record])
            continue
        for article in record.children("data"):
            for paragraph in article.children("paragraphs"):
                yield _paragraph(paragraph.text("context"), paragraph.children("qas"))


def _paragraph(context: str, qas: list[Record]) -> Example:
    questions = []
    for qa in qas:
        impossible = qa.has("is_impossible") and qa.get("is_impossible", kind=bool)
        answers = [] if impossible else _answers(qa)
        question = qa.get("question", kind=str)
        if not answers or not question.strip():
            continue
        (where, first, start), texts = answers[0], [text for _, text, _ in answers]
        end = start + len(first)
        if start < 0 or context[start:end] != first:
            raise InputError(
                f"{where}: the text {first!r} does not stand at character {start} of the context; correct 'answer_start'."
            )
        evidence = ((0, sentence_around(context, start, end)),)
        alternatives = tuple(dict.fromkeys(text for text in texts[1:] if text != first))
        questions.append(PassageQuestion(question, first, evidence, alternatives))
    return Example("squad", (Passage(context, context),), tuple(questions))


def _answers(qa: Record) -> list[tuple[str, str, int]]:
    """Where each answer stands in the file, its text, and its place in the context."""
    if isinstance(qa.value.get("answers"), dict):
        pairs = _pairs(qa, "answers", "text", "answer_start")
        return [
            (where, filled(checked(text, str, where), where), checked(start, int, where)) for where, text, start in pairs
        ]
    return [(one.where, one.text("text"), one.get("answer_start", kind=int)) for one in qa.children("answers")]
