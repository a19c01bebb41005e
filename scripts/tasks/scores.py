"""How right an answer is: the measures of the field, each 0 to 1, and an interval for their mean."""

from __future__ import annotations

import math
import random
import re
import string
from collections import Counter
from collections.abc import Sequence

from model.errors import InputError
from tasks.document import Question

_PUNCTUATION = str.maketrans("", "", string.punctuation)
WHOLE_ANSWERS = (["yes"], ["no"], ["noanswer"])
_LIST_BORDER = re.compile(r",|;|\n|\band\b|(?:^|(?<=\s))\d{1,2}[.)]\s", re.IGNORECASE)


def normalize(text: str) -> str:
    """Lower case, no punctuation, no articles (a, an, the), single spaces.

    As SQuAD's official evaluation script does (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1).
    """
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, target: str) -> float:
    """1 if answer and target are the same after `normalize` (SQuAD's exact match, arXiv 1606.05250, section 6.1)."""
    return float(normalize(answer) == normalize(target))


def contained_match(answer: str, target: str) -> float:
    """1 if the target stands in the answer, word for word after `normalize`.

    This is the accuracy usual for free-form answers ("Mary is in the kitchen."). Unlike RULER's `recall_all` it asks
    for whole words, so that 13 does not contain 3.
    """
    return float(f" {normalize(target)} " in f" {normalize(answer)} ")


def token_f1(answer: str, target: str) -> float:
    """The harmonic mean of precision and recall of the words shared, counted with repetition, after `normalize`.

    SQuAD's F1 (arXiv 1606.05250, section 6.1). Where one has no words it is 1 if both have none, as in the script of
    SQuAD 2.0; and "yes" and "no" are right only alone, as in HotpotQA's.
    """
    found, wanted = normalize(answer).split(), normalize(target).split()
    if not found or not wanted or found in WHOLE_ANSWERS or wanted in WHOLE_ANSWERS:
        return float(found == wanted)
    return _f1((Counter(found) & Counter(wanted)).total(), len(found), len(wanted))


def list_items(answer: str) -> set[str]:
    """The items of an answer that is a list: split at commas, semicolons, "and", line ends and numbers ("1. ")."""
    return {item for item in map(normalize, _LIST_BORDER.split(answer)) if item}


def list_f1(answer: str, targets: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of the answer's items among the targets, in any order.

    The F1 of sets, as is used for common-word extraction in Writing in the Margins (Russak et al. 2024,
    arXiv 2408.14906, abstract); items are compared after `normalize`, each counts once.
    """
    found, wanted = list_items(answer), {normalize(target) for target in targets}
    return _f1(len(found & wanted), len(found), len(wanted))


def recall_all(answer: str, targets: Sequence[str]) -> float:
    """The part of the targets that stand anywhere in the answer, in any case of letters.

    RULER's string_match_all (Hsieh et al. 2024, arXiv 2404.06654; scripts/eval/synthetic/constants.py of its code).
    """
    return sum(target.lower() in answer.lower() for target in targets) / len(targets)


def chosen_letter(answer: str, choices: Sequence[str]) -> str | None:
    """The letter that the answer to a question with choices chooses; None where it chooses none, or several.

    "The correct answer is (B)", as the script of LongBench v2 reads it (Bai et al. 2024, arXiv 2412.15204); else the one
    letter in brackets, the letter that the answer begins with, or the choice that it repeats.
    """
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(choices)]
    text = answer.replace("*", "").strip()
    if said := re.search(rf"(?i:correct answer is):?\s*\(?([{letters}])\b", text):
        return said[1]
    if bracketed := set(re.findall(rf"\(([{letters}])\)", text)):
        return bracketed.pop() if len(bracketed) == 1 else None
    if first := re.match(rf"([{letters}])(?:[.:)]|$|\n)", text):
        return first[1]
    repeated = [letter for letter, choice in zip(letters, choices, strict=True) if exact_match(text, choice)]
    return repeated[0] if len(repeated) == 1 else None


def _f1(shared: int, found: int, wanted: int) -> float:
    return 2 * shared / (found + wanted) if shared else 0.0


# Tasks not named here: list F1 where the answer is a list, contained match where it is not.
MAIN_MEASURE = {
    "needles_several": "recall_all",
    "needles_values": "recall_all",
    "squad": "token_f1",
    "longbench": "token_f1",
    "longbench_v2": "chosen_letter",
    "ruler": "recall_all",
}
MEASURES = {
    "contained_match": "answers that contain the right one",
    "token_f1": "F1 of the words of the answer",
    "list_f1": "F1 of the items of the list",
    "recall_all": "share of what is wanted that the answer contains",
    "chosen_letter": "answers that choose the right letter",
}


def main_measure(question: Question) -> str:
    """The name, in MEASURES, of what counts for a question."""
    return MAIN_MEASURE.get(question.task, "contained_match" if isinstance(question.target, str) else "list_f1")


def score(question: Question, answer: str) -> dict[str, float]:
    """Every measure that applies to the answer, and the task's main one again as "score".

    Where a question has alternatives, the best of them counts, as in SQuAD.
    """
    if question.choices:
        result = {
            "exact_match": exact_match(answer, question.target),
            "chosen_letter": float(chosen_letter(answer, question.choices) == question.target),
        }
    elif isinstance(question.target, str):
        right = (question.target, *question.alternatives)
        measures = (exact_match, contained_match, token_f1)
        result = {measure.__name__: max(measure(answer, target) for target in right) for measure in measures}
        result["recall_all"] = max(recall_all(answer, [target]) for target in right)
    else:
        targets = question.target
        items = list_items(answer)
        result = {
            "exact_match": float(items == {normalize(target) for target in targets}),
            "token_f1": token_f1(answer, question.answer),
            "list_f1": list_f1(answer, targets),
            "recall_all": recall_all(answer, targets),
        }
    return {"score": result[main_measure(question)], **result}


def interval(scores: Sequence[float], *, n_resamples: int = 2000, seed: int = 0) -> tuple[float, float]:
    """The 95% confidence interval of the mean of the scores.

    For scores that are all 0 or 1 Wilson's score interval (Wilson 1927, J. Am. Stat. Assoc. 22:209-212), which stays
    within [0, 1] and keeps a width when all are right. Otherwise (means of F1) `bounded_bootstrap` within 0 and 1.
    """
    n = len(scores)
    if n == 0:
        raise InputError("An interval of 0 scores is asked for; score at least one answer.")
    mean = math.fsum(scores) / n
    if all(value in (0, 1) for value in scores):
        z = 1.959964  # 97.5% of the normal distribution
        centre = mean + z * z / (2 * n)
        half = z * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
        low, high = ((centre + sign * half) / (1 + z * z / n) for sign in (-1, 1))
        return max(0.0, low), min(1.0, high)
    return bounded_bootstrap(scores, 0.0, 1.0, n_resamples=n_resamples, seed=seed)


def bounded_bootstrap(
    values: Sequence[float], lowest: float, highest: float, *, n_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The 95% confidence interval of the mean of values that lie between two bounds, such as differences of two patterns.

    The percentile bootstrap (Efron 1979, Ann. Stat. 7:1-26), seeded; but never narrower than what so few values can tell.
    Of n values, all of one kind, another kind can have a share of 1 - 0.025^(1/n) in truth (Clopper and Pearson 1934,
    Biometrika 26:404-413), so much of the mean may lie at either bound.
    """
    rng, n = random.Random(seed), len(values)
    means = sorted(math.fsum(rng.choices(values, k=n)) / n for _ in range(n_resamples))
    mean, unseen = math.fsum(values) / n, 1 - 0.025 ** (1 / n)
    low, high = ((1 - unseen) * mean + unseen * bound for bound in (min(lowest, *values), max(highest, *values)))
    return min(low, means[int(0.025 * n_resamples)]), max(high, means[math.ceil(0.975 * n_resamples) - 1])
