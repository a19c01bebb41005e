"""Documents: spans, margins, lengths, seeds, and the backgrounds that facts are hidden in."""

import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tasks import TASKS, Background, Document, Question, hide, make_document, simulate
from tasks.common_words import word_list
from tasks.sentences import sentence_around, split_sentences
from tasks.story import STORY_TASKS

from model.errors import InputError

BACKGROUND = Background.generated(n_sentences=4000)
seeds = st.integers(0, 10**6)


def count_tokens(text):
    return len(re.findall(r"\w+|[^\w\s]", text))


def make(task, **changes):
    arguments = {"seed": 1, "n_tokens": 600, "count_tokens": count_tokens, "background": BACKGROUND}
    return make_document(task, **{**arguments, **changes})


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(0, 6000), st.integers(0, 40))
def test_hide_puts_each_fact_between_sentences(seed, n_chars, n_facts):
    rng = random.Random(seed)
    facts = simulate(rng, n_facts).texts
    sentences = BACKGROUND.passage(rng, n_chars)
    text, spans = hide(sentences, facts, rng)
    assert [text[a:b] for a, b in spans] == facts and spans == sorted(spans)
    rest = list(text)
    for a, b in reversed(spans):
        assert a == 0 or text[a - 1] in " \n"
        assert b == len(text) or text[b] in " \n"
        del rest[a : b + 1]  # with the one space that the fact brought along
    assert "".join(rest).rstrip() == "".join(sentences).rstrip()


@settings(max_examples=60, deadline=None)
@given(seeds, st.lists(st.integers(0, 4000), max_size=8))
def test_margins_of_a_partition_cover_the_evidence_that_no_border_cuts(seed, borders):
    document = make(list(STORY_TASKS), seed=seed, n_questions=4)
    borders = [0, *sorted(min(border, len(document.text)) for border in borders), len(document.text)]
    chunks = list(zip(borders, borders[1:], strict=False))
    for question in document.questions:
        whole = [(a, b) for a, b in question.evidence if any(c <= a and b <= d for c, d in chunks)]
        margins = [document.margin(question, *chunk) for chunk in chunks]
        assert " ".join(m for m in margins if m != "None.") == " ".join(document.text[a:b] for a, b in whole)
    assert document.margin(document.questions[0], 0, 0) == "None."


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("n_tokens", [300, 1000, 5000])
def test_length_is_within_five_percent_from_below_and_seeds_decide(task, n_tokens):
    texts = set()
    for seed in range(3):
        document = make(task, seed=seed, n_tokens=n_tokens)
        assert 0.95 * n_tokens <= count_tokens(document.text) <= n_tokens
        assert document == make(task, seed=seed, n_tokens=n_tokens)
        (question,) = document.questions
        assert question.task == task and question.answer and question.evidence
        texts.add(document.text)
    assert len(texts) == 3


def test_the_facts_of_a_seed_are_the_same_at_every_length():
    short, long = (make("two_facts", n_tokens=n).questions[0] for n in (300, 3000))
    assert (short.query, short.target, len(short.evidence)) == (long.query, long.target, len(long.evidence))


def test_several_questions_on_one_story_are_different_and_take_turns():
    questions = make(list(STORY_TASKS), n_questions=8, n_statements=40, n_tokens=1500).questions
    assert [q.task for q in questions] == list(STORY_TASKS) * 2
    assert len({q.query for q in questions}) == 8
    assert len(make(["needles_single", "needles_values"], n_questions=2).questions) == 2


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(1, 700), st.sampled_from([(30, 3), (6, 1)]))
def test_common_words_are_common(seed, n_uncommon, repeats):
    text, question = word_list(random.Random(seed), n_uncommon, *repeats)
    entries = text.split(" ")
    assert entries[::2] == [f"{i}." for i in range(1, len(entries) // 2 + 1)]
    counts = Counter(entries[1::2])
    assert {w for w, n in counts.items() if n == repeats[0]} == set(question.target) and len(question.target) == 10
    assert sum(n == repeats[1] for n in counts.values()) == n_uncommon == len(counts) - 10
    assert Counter(text[a:b].split(". ")[1] for a, b in question.evidence) == dict.fromkeys(question.target, repeats[0])


@pytest.mark.parametrize(
    ("task", "changes", "words"),
    [
        ("three_facts", {}, "no task 'three_facts'"),
        ([], {}, "empty list"),
        (["listing", "common_words"], {}, "cannot share"),
        ("listing", {"n_questions": 0}, "questions is 0"),
        ("common_words", {"n_questions": 2}, "not 2"),
        ("listing", {"n_tokens": 20}, "of 20"),
        ("common_words", {"n_tokens": 20}, "of 20"),
        ("two_facts", {"n_statements": 2}, "No 2 statements"),
        ("listing", {"n_statements": 0}, "0 statements"),
        ("needles_single", {"n_statements": 1000}, "1000 statements"),
    ],
)
def test_what_cannot_be_made_is_said(task, changes, words):
    with pytest.raises(InputError, match=words):
        make(task, **changes)


def test_sentences_of_wrapped_text():
    text = 'Mr. Fox came\nhome.  "Is it\n late?" He sat\ndown!\r\n\r\n\n  It rained. J. Smith left'
    expected = ["Mr. Fox came home. ", '"Is it late?" ', "He sat down!\n\n", "It rained. ", "J. Smith left\n\n"]
    assert split_sentences(text) == expected
    assert split_sentences(" \n\n ") == []
    line = "It rained. He sat down. She left."
    assert line[slice(*sentence_around(line, 14, 17))] == "He sat down."
    assert line[slice(*sentence_around(line, 0, 20))] == "It rained. He sat down."


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(1, 400))
def test_passages_are_consecutive_and_just_long_enough(seed, n_chars):
    background = Background([f"{'x' * i}. " for i in range(1, 12)] + ["Last one.\n\n"])
    passage = background.passage(random.Random(seed), n_chars)
    assert sum(map(len, passage[:-1])) < n_chars <= sum(map(len, passage))
    start = background.sentences.index(passage[0])
    assert passage == (background.sentences[start:] + background.sentences * 9)[: len(passage)]
    if n_chars <= background.n_chars:
        assert start + len(passage) <= len(background.sentences)


def test_background_leaves_out_what_looks_like_a_fact(tmp_path):
    (tmp_path / "a.txt").write_text("It rained. Mary took the milk. One secret number of Rome is 1. Mary took heart.")
    (tmp_path / "b.txt").write_text("\ufeffÉtienne slept.", encoding="utf-8")
    assert Background.from_folder(tmp_path).sentences == ["It rained. ", "Mary took heart.\n\n", "Étienne slept.\n\n"]
    assert Background.from_folder(tmp_path, ["b.txt"]).sentences == ["Étienne slept.\n\n"]


def test_generated_background_is_its_own_and_repeatable():
    assert Background.generated(n_sentences=300).sentences == Background.generated(n_sentences=300).sentences
    assert Background.generated(1, 300).sentences != Background.generated(2, 300).sentences
    assert len(BACKGROUND.sentences) == 4000  # nothing in it looks like a fact
    assert len(set(BACKGROUND.sentences)) > 3000


@pytest.mark.parametrize(
    ("content", "files", "words"),
    [
        (None, None, "No .txt files"),
        (None, ["gone.txt"], "gone.txt cannot be read"),
        (b"  \n", None, "holds no text"),
        (b"caf\xe9", None, "not UTF-8 text .byte 3"),
        (b"Mary took the milk.", None, "no sentences"),
    ],
)
def test_bad_backgrounds(tmp_path, content, files, words):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(InputError, match=words):
        Background.from_folder(tmp_path, files)


def test_background_folder_is_missing(tmp_path):
    with pytest.raises(InputError, match="not a folder"):
        Background.from_folder(tmp_path / "gone")


def test_answer_and_margin_by_hand():
    question = Question("listing", "Which?", ("park", "school"), ((4, 8), (13, 17)))
    document = Document("One Two. and Six. end", (question,))
    assert question.answer == "park, school" and question.targets == ("park", "school")
    assert document.margin(question, 0, 21) == "Two. Six."
    assert document.margin(question, 4, 16) == "Two."
    assert document.margin(question, 5, 16) == "None."
