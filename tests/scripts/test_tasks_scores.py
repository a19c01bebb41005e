"""Scores against values worked out by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks import (
    Question,
    contained_match,
    exact_match,
    interval,
    list_f1,
    normalize,
    recall_all,
    score,
    token_f1,
)

from model.errors import InputError


def test_normalize():
    assert normalize("  The Cat's\n\thome, an  (old) barn. ") == "cats home old barn"
    assert normalize("Theatre and the") == "theatre and"
    assert normalize("the, a!") == ""


@pytest.mark.parametrize(
    ("measure", "answer", "target", "value"),
    [
        (exact_match, "The kitchen.", "kitchen", 1),
        (exact_match, "in the kitchen", "kitchen", 0),
        (contained_match, "Mary is in the Kitchen.", "kitchen", 1),
        (contained_match, "kitchens", "kitchen", 0),
        (contained_match, "13", "3", 0),
        (contained_match, "New York City", "the New York", 1),
        (contained_match, "", "kitchen", 0),
        (token_f1, "the big old cat", "cat", 0.5),  # precision 1/3, recall 1
        (token_f1, "red red blue", "red blue blue", 2 / 3),  # two words shared of three and three
        (token_f1, "dog", "cat", 0),
        (token_f1, "", "cat", 0),
        (token_f1, "the", "a", 1),
        (token_f1, "Yes, they are", "yes", 0),  # as HotpotQA has it
        (token_f1, "no", "no signal", 0),
        (token_f1, "Yes.", "yes", 1),
        (list_f1, "school, the park and garden", ["park", "school", "garden"], 1),
        (list_f1, "1. park\n2. school\n", ["park", "school"], 1),
        (list_f1, "1. park 2. kitchen", ["park", "school"], 0.5),
        (list_f1, "park, park", ["park", "school"], 2 / 3),  # precision 1, recall 1/2
        (list_f1, "sandpit, handle", ["sandpit", "handle"], 1),  # "and" within a word is no border
        (list_f1, "4821. 5352", ["4821", "5352"], 0),
        (list_f1, "", ["park"], 0),
        (recall_all, "Numbers: 4821 and 99", ["4821", "5352"], 0.5),
        (recall_all, "PARKS", ["park"], 1),
    ],
)
def test_measures(measure, answer, target, value):
    assert measure(answer, target) == pytest.approx(value)


def test_score_chooses_the_main_measure():
    single = score(Question("single_fact", "", "kitchen"), "She is in the kitchen")
    assert single == {
        "score": 1,
        "exact_match": 0,
        "contained_match": 1,
        "token_f1": pytest.approx(0.4),  # one word of "she is in kitchen"
        "recall_all": 1,
    }
    listed = score(Question("listing", "", ("park", "school")), "school")
    assert listed["score"] == listed["list_f1"] == pytest.approx(2 / 3) and listed["recall_all"] == 0.5
    assert score(Question("listing", "", ("park", "school")), "school and park")["exact_match"] == 1
    assert score(Question("needles_several", "", ("1234", "5678")), "5678, and 9")["score"] == 0.5
    best = score(Question("squad", "", "Tiber", alternatives=("river Tiber",)), "the river Tiber")
    assert best["score"] == best["token_f1"] == best["exact_match"] == 1


@given(st.text(max_size=30), st.text(max_size=30))
def test_measures_stay_between_0_and_1(answer, target):
    for question in (Question("x", "", target), Question("x", "", (target, "park"))):
        assert all(0 <= value <= 1 for value in score(question, answer).values())
    if normalize(target):
        assert score(Question("x", "", target), target)["score"] == 1


def test_wilson_by_hand():
    # 8 of 10: (0.8 + 0.19207 +- 1.96 sqrt(0.016 + 0.0096036)) / 1.38415
    assert interval([1] * 8 + [0] * 2) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert interval([1.0] * 50) == pytest.approx((0.9287, 1), abs=1e-4)  # 50 / (50 + 1.96^2)
    assert interval([0]) == pytest.approx((0, 0.7935), abs=1e-4)
    with pytest.raises(InputError, match="0 scores"):
        interval([])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=60))
def test_interval_holds_values_that_can_be(scores):
    low, high = interval(scores, n_resamples=200)
    assert min(-1, *scores) <= low <= high <= max(1, *scores)
    assert (low, high) == interval(scores, n_resamples=200)


def test_bootstrap_is_near_the_normal_interval():
    scores = [0.1 * (i % 11) for i in range(110)]  # mean 0.5, standard deviation 0.1 sqrt(10)
    low, high = interval(scores)
    assert (low, high) == pytest.approx((0.5 - 0.0591, 0.5 + 0.0591), abs=0.008)
