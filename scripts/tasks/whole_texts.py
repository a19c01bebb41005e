"""Records that bring one document whole and one question on it: plain ones, LongBench, LongBench v2 and RULER."""

from __future__ import annotations

import re
from typing import Any

from model.errors import InputError
from tasks.document import Document, Question, Span
from tasks.records import Record, checked, filled
from tasks.sentences import sentences_within

# Fields of a plain record that would change what is right. What they mean is not known here, so they are refused.
UNKNOWN_CHOICES = re.compile(
    r"(\w+_)?(choices|options|alternatives|alias|aliases|candidates|distractors|outputs|targets|endings)(_\w+)?"
    r"|(choice|option|answer|ending|op)?[_ ]?([a-f]|\d)",
    re.IGNORECASE,
)
# The data sets of LongBench that are scored by the F1 of words; the others want other measures or other questions.
LONGBENCH_QA = ("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique", "triviaqa")
LETTERS = "ABCD"
RULER_QA = "Answer the question based on the given documents."  # what its prompts of question answering say
RULER_REPLY = re.compile(r" Answer:.*|(?<=\?) The special magic .*")  # the beginnings of a reply behind its questions


def plain(record: Record) -> Document:
    """A record with a text, a question on it and the target.

    Such are the records of BABILong (Kuratov et al. 2024, arXiv 2406.10149; fields input, question, target), the examples
    published with Writing in the Margins (github.com/writer/writing-in-the-margins; context, query, target), and others
    like them. A target that is a list makes the answer a list, of which all is wanted; a number is taken as its digits.
    `answers` is a list of which any one is right. `evidence`, a list of passages that stand in the text, tells which of its
    sentences bear on the question; what does not stand there is left out. Raises InputError for fields that look like
    choices to pick from: without them the answer would be scored wrongly.
    """
    known = {"context", "input", "query", "question", "target", "answer", "answers"}
    for name, value in record.value.items():
        if name not in known and value and isinstance(value, str | list | dict) and UNKNOWN_CHOICES.fullmatch(name):
            raise InputError(
                f"{record.where}: the field {name[:40]!r} looks like choices or other right answers, which plain records "
                "have as 'answers' (any is right) or as a list 'target' (all are wanted); rename or remove it."
            )
    text = record.text("context", "input")
    query = record.text("query", "question").strip()
    target: str | tuple[str, ...]
    if record.has("answers") and not (record.has("target") or record.has("answer")):
        target, *others = _texts(record, "answers")
    else:
        name = record.name("target", "answer")
        value = record.value[name]
        target = tuple(_texts(record, name)) if isinstance(value, list) and value else _one_text(value, record, name)
        others = _texts(record, "answers") if record.has("answers") else []
        if others and not isinstance(target, str):
            raise InputError(f"{record.where}: 'answers' are alternatives to one text, and {name!r} is a list; remove one.")
    alternatives = tuple(dict.fromkeys(other for other in others if other != target))
    return Document(text, (Question("plain", query, target, _evidence(record, text), alternatives),))


def longbench(record: Record) -> Document:
    """LongBench (Bai et al. 2023, arXiv 2308.14508): input (the question), context, and answers, of which any is right.

    Raises InputError for a record of a data set that is not scored by the F1 of words (summaries, classes, code, Chinese).
    """
    if record.has("dataset"):
        name = record.get("dataset", kind=str)
        if name.removesuffix("_e") not in LONGBENCH_QA:
            raise InputError(
                f"{record.where}: LongBench's {name[:40]!r} has a measure of its own, which is not supported; give one of "
                f"{', '.join(LONGBENCH_QA)}."
            )
    if record.value.get("all_classes"):
        raise InputError(f"{record.where}: 'all_classes' asks for one of some classes, which is not supported; remove it.")
    first, *others = _texts(record, "answers")
    alternatives = tuple(dict.fromkeys(other for other in others if other != first))
    return Document(record.text("context"), (Question("longbench", record.text("input").strip(), first, (), alternatives),))


def longbench_v2(record: Record) -> Document:
    """LongBench v2 (Bai et al. 2024, arXiv 2412.15204): context, question, choice_A to choice_D, and the letter as answer.

    The choices are shown with the question, and the letter that the reply chooses is scored (scores.chosen_letter).
    """
    choices = tuple(record.text(f"choice_{letter}").strip() for letter in LETTERS)
    letter = record.text("answer").strip()
    if letter not in tuple(LETTERS):
        raise InputError(f"{record.where}, field 'answer': {letter[:40]!r} is none of A, B, C and D; correct it.")
    shown = "\n".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
    query = (
        f'{record.text("question").strip()}\nChoices:\n{shown}\nReply with one letter, as in "The correct answer is (A)".'
    )
    return Document(record.text("context"), (Question("longbench_v2", query, letter, choices=choices),))


def ruler(record: Record) -> Document:
    """RULER's generated files (Hsieh et al. 2024, arXiv 2404.06654): input, a whole prompt, and outputs, all wanted.

    The question is the last line of the prompt, as in all of RULER's templates, without the beginning of an answer that
    follows it in some; the document is what comes before. In its question answering any of the outputs is right.
    """
    prompt = record.text("input").strip()
    if record.has("answer_prefix"):
        prompt = prompt.removesuffix(record.get("answer_prefix", kind=str).strip()).rstrip()
    text, _, last = prompt.rpartition("\n")
    query = RULER_REPLY.sub("", last.removeprefix("Question:")).strip()
    if not text.strip() or not query:
        raise InputError(f"{record.where}, field 'input': a question on a line of its own is missing at its end; add it.")
    outputs = _texts(record, "outputs")
    if RULER_QA in prompt:
        return Document(text, (Question("ruler", query, outputs[0], alternatives=tuple(outputs[1:])),))
    return Document(text, (Question("ruler", query, tuple(outputs)),))


def _texts(record: Record, name: str) -> list[str]:
    """The texts of a list field, of which there is at least one."""
    values = record.get(name, kind=list)
    if not values:
        raise InputError(f"{record.where}, field {name!r}: this list is empty; fill it in or remove the record.")
    places = [f"{record.where}, {name}[{i}]" for i in range(len(values))]
    return [filled(checked(value, str, place), place).strip() for value, place in zip(values, places, strict=True)]


def _one_text(value: Any, record: Record, name: str) -> str:
    where = f"{record.where}, field {name!r}"
    value = str(value) if type(value) is int else value
    return filled(checked(value, str, where), where).strip()


def _evidence(record: Record, text: str) -> tuple[Span, ...]:
    """The sentences of the passages under `evidence`, where they stand in the text, in its order."""
    passages = record.value.get("evidence")
    if not isinstance(passages, list) or not all(isinstance(passage, str) for passage in passages):
        return ()  # something else of that name
    spans: dict[Span, None] = {}
    for passage in passages:
        if words := passage.split():
            start, end = text.find(passage.strip()), 0
            if start >= 0:
                end = start + len(passage.strip())
            elif found := re.search(r"\s+".join(map(re.escape, words)), text):  # lines may be broken elsewhere
                start, end = found.span()
            spans |= dict.fromkeys(sentences_within(text, start, end) if end else ())
    return tuple(sorted(spans))
