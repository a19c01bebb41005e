"""How good notes are, whoever made them: margins that a model wrote, or sentences that it only marked.

What is known is the question, its answers, and the sentences of the document that bear on it (its evidence). Words are
compared after `normalize`, without those of the question: a note that only repeats the question says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tasks.document import NO_EVIDENCE, Document, Question
from tasks.scores import contained_match, normalize
from wim.verdict import says_nothing

USEFUL_SHARE = 0.6  # of a note's words that stand in the evidence
FOUND_SHARE = 0.8  # of an evidence sentence's words that stand in a note: its verb alone must not do


def same_words(note: str, gold: str) -> bool:
    """Whether a note is the word-for-word one; one that says that there is nothing is it in any of the usual wordings."""
    return note.split() == gold.split() or (gold == NO_EVIDENCE and says_nothing(note))


def evidence_sentences(document: Document, question: Question) -> list[str]:
    return [document.text[start:end] for start, end in question.evidence]


def is_useful(note: str, question: Question, evidence: Sequence[str]) -> bool:
    """Whether a note can help: it holds an answer, or most of its words beyond the question's stand in the evidence."""
    if says_nothing(note):
        return False
    # The letter of a choice may be a word of any text.
    answers = () if question.choices else (*question.targets, *question.alternatives)
    if any(normalize(answer) and contained_match(note, answer) for answer in answers):
        return True
    known = {word for sentence in evidence for word in normalize(sentence).split()}
    words = _beyond(question, note)
    return bool(words) and sum(word in known for word in words) >= USEFUL_SHARE * len(words)


def evidence_found(question: Question, evidence: Sequence[str], notes: Iterable[str]) -> int:
    """How many of the evidence sentences are found in some note, by nearly all of their words beyond the question's."""
    held = [set(normalize(note).split()) for note in notes]
    found = 0
    for sentence in evidence:
        words = _beyond(question, sentence) or normalize(sentence).split()
        found += any(sum(word in note for word in words) >= FOUND_SHARE * len(words) for note in held)
    return found


def best(notes: Sequence[tuple[str, float]], most: int) -> list[str]:
    """The texts of the `most` notes with the highest score; of equal ones the earlier first.

    So `evidence_found(question, evidence, best(notes, 6))` says how much of the evidence is among the first six.
    """
    return [text for text, _ in sorted(notes, key=lambda note: -note[1])[:most]]


def area_under_curve(good: Sequence[float], bad: Sequence[float]) -> float | None:
    """The probability that a score of a good note is above that of a bad one, equal ones counted half (Hanley and McNeil
    1982, Radiology 143:29-36); None where there are not both."""
    if not good or not bad:
        return None
    above = sum((one > other) + (one == other) / 2 for one in good for other in bad)
    return above / (len(good) * len(bad))


def _beyond(question: Question, text: str) -> list[str]:
    asked = set(normalize(question.query).split())
    return [word for word in normalize(text).split() if word not in asked]
