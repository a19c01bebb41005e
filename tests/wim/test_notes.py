"""Which sentences of margins go into the final prompt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wim.chunks import Chunk
from wim.notes import sentences, without_repeats

SENTENCES = ["Mary went home.", "John took 3.5 apples!", "“Why?”", "他去了花园。", "no end"]


def kept(*margins: tuple[str, str]) -> list[str]:
    """margins: (margin, text of its chunk)."""
    left = without_repeats([(margin, Chunk(0, [], 0, 0, 0, 0, text)) for margin, text in margins])
    return [note for note in left if note]


@pytest.mark.parametrize(
    "second, chunk, left",
    [
        ("Mary went home.", "Nobody moved.", []),  # the chunk before was meant
        ("Mary went home. John left.", "John left.", ["John left."]),
        ("Mary went home.", "Again, Mary went\nhome. And so on.", ["Mary went home."]),  # it happened twice
        ("Mary went to bed.", "Nobody moved.", ["Mary went to bed."]),  # wrong perhaps, but no repetition
        ("Mary  went\nhome. Mary went home.", "", []),
        ("None.", "", ["None."]),
        ("1. Mary went home.", "Nobody moved.", ["1."]),  # a new number
        ("Mr. Mary went home.", "Nobody moved.", []),
        ("1. Mary went home. 2. Mr. Hill came.", "2. Mr. Hill came.", ["1. 2. Mr. Hill came."]),
    ],
)
def test_what_an_earlier_margin_holds_is_left_out(second, chunk, left):
    first = "Mr. John sat down. Mary went home."
    assert kept((first, first), (second, chunk)) == [first, *left]


def test_a_repetition_within_a_margin_stays():
    assert kept(("No. No.", "")) == ["No. No."]


def test_a_sentence_left_out_is_still_known():
    assert kept(("Number one.", ""), ("Number one. And two.", ""), ("And two. Number one.", "")) == [
        "Number one.",
        "And two.",
    ]


@given(st.lists(st.sampled_from(SENTENCES), max_size=8))
def test_sentences_are_found_again(parts):
    assert sentences(" ".join(part for part in parts if part != "no end")) == [part for part in parts if part != "no end"]


@given(st.lists(st.tuples(st.text(alphabet="ab. \n!", max_size=30), st.text(alphabet="ab. \n!", max_size=40)), max_size=6))
def test_nothing_is_lost_but_repetitions(margins):
    lists = [sentences(margin) for margin, _ in margins]
    assert {sentence for note in kept(*margins) for sentence in sentences(note)} == {s for found in lists for s in found}


@pytest.mark.parametrize(
    "written, chunk, underlined, left",
    [
        ("1. Mary went home. 2. John left.", "Mary went home. John left. Rain fell.", "Mary went home.", []),
        ("Mary went home.", "Mary went home. Rain fell.", "Rain fell.", ["Rain fell."]),
        ("Mary went home.", "Mary went home. Rain fell. Mary went home.", "Mary went home.", ["Mary went home."]),
    ],
)
def test_a_sentence_of_a_chunk_is_listed_as_often_as_the_chunk_says_it(written, chunk, underlined, left):
    on = Chunk(0, [], 0, 0, 0, 0, chunk)
    notes = without_repeats([(written, on), (underlined, on)])
    assert notes == [written, *left] + [""] * (1 - len(left))
