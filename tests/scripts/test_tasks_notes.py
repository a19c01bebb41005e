"""Which notes help, and which evidence is found in them: by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tasks import Document, Question
from tasks.notes import area_under_curve, best, evidence_found, evidence_sentences, is_useful, same_words, says_nothing

TEXT = "Ann wrote it. Viva was founded in Cologne in 1993. It rained."
QUESTION = Question("plain", "In which city was Viva founded?", "Cologne", ((0, 13), (14, 50)), ("Köln",))
EVIDENCE = ["Ann wrote it.", "Viva was founded in Cologne in 1993."]


@pytest.mark.parametrize("note", ["None.", "None", " none\n", "", "I don't know.", "I do not know"])
def test_nothing_is_said_in_several_ways(note):
    assert says_nothing(note) and same_words(note, "None.") and not same_words(note, "Ann wrote it.")
    assert not is_useful(note, QUESTION, EVIDENCE)


def test_a_word_for_word_note_has_the_same_words():
    assert same_words("Ann  wrote\nit.", "Ann wrote it.") and not same_words("Ann wrote", "Ann wrote it.")
    assert not same_words("It rained.", "None.")


@pytest.mark.parametrize(
    ("note", "useful"),
    [
        ("Viva sits in Cologne, they say.", True),  # holds the answer
        ("It is in Köln today, on the Rhine.", True),  # another answer
        ("Ann wrote it", True),
        ("Ann wrote songs of rain", False),  # two of five words
        ("Ann wrote songs of it", True),  # three of five
        ("In which city was Viva founded?", False),  # nothing beyond the question
        ("It rained all day.", False),
    ],
)
def test_a_useful_note_holds_the_answer_or_words_of_the_evidence(note, useful):
    assert is_useful(note, QUESTION, EVIDENCE) == useful


def test_the_letter_of_a_choice_is_no_answer_that_a_note_could_hold():
    question = Question("longbench_v2", "Which?\n(A) One", "A", choices=("one", "two"))
    assert not is_useful("A dog barked", question, ["Nobody came."])


def test_evidence_is_found_sentence_by_sentence():
    assert evidence_sentences(Document(TEXT, (QUESTION,)), QUESTION) == EVIDENCE
    assert evidence_found(QUESTION, EVIDENCE, ["Viva: Cologne, 1993", "It rained."]) == 1
    assert evidence_found(QUESTION, EVIDENCE, ["Ann wrote that it was in Cologne in 1993."]) == 2
    assert evidence_found(QUESTION, EVIDENCE, ["Ann wrote", "Cologne"]) == 0
    story = Question("single_fact", "Where is Mary?", "garden")
    assert evidence_found(story, ["Mary went to the garden."], ["Mary went to the kitchen."]) == 0
    assert evidence_found(story, ["Where is Mary"], ["Is Mary where?"]) == 1  # only words of the question


def test_the_best_notes_are_those_of_the_highest_score():
    assert best([("a", 0.1), ("b", 0.9), ("c", 0.1), ("d", 0.5)], 3) == ["b", "d", "a"]


def test_area_by_hand():
    assert area_under_curve([0.9, 0.4], [0.4, 0.1]) == pytest.approx(3.5 / 4)
    assert area_under_curve([1.0], []) is None


@given(st.lists(st.floats(0, 1), min_size=1), st.lists(st.floats(0, 1), min_size=1))
def test_area_is_fair(good, bad):
    area = area_under_curve(good, bad)
    assert 0 <= area <= 1 and area == pytest.approx(1 - area_under_curve(bad, good))
