"""wim/verdict.py: a margin that says there is nothing needs no verdict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wim_helpers import QUERY, document, open_wim, write_reader

from wim.events import Done, MarginDone
from wim.verdict import says_nothing

NOTHING = [
    "",
    " \n",
    "None",
    "None.",
    "none",
    "NONE!",
    "**None.**",
    '"None."',
    "N/A",
    "n/a.",
    "I don't know.",
    "I don’t know",
]
SOMETHING = [
    "Mary went home.",
    "None of them saw Mary.",
    "No",
    "Nothing",
    "0",
    "Mary",
    "None. Mary went home.",
    "The nave.",
]


@pytest.mark.parametrize("text", NOTHING)
def test_ways_to_say_that_there_is_nothing(text):
    assert says_nothing(text)


@pytest.mark.parametrize("text", SOMETHING)
def test_what_may_be_an_answer_is_not_nothing(text):
    assert not says_nothing(text)


@given(text=st.sampled_from(NOTHING), before=st.text(" \n*.", max_size=3), after=st.text(" \n*.…。", max_size=3))
def test_marks_around_it_do_not_matter(text, before, after):
    assert says_nothing(before + text + after)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_reader(tmp_path_factory.mktemp("reader"), "llama")


@pytest.mark.parametrize(
    "options", [{}, {"classifier": None}, {"pack": True}, {"margin_window": 2}, {"threshold": 0.0}], ids=str
)
def test_a_margin_that_says_nothing_is_not_relevant_and_nobody_is_asked(folder, options, monkeypatch):
    """Every second chunk's margin is made to say so, whatever the model writes."""
    wim = open_wim(folder, document(), **options)
    write, n_written, judged = wim.desk.write, [], []

    def write_nothing(phase, steps, events):
        texts = yield from write(phase, steps, events)
        for row in range(len(texts) if phase == "margins" else 0):
            texts[row] = "None." if len(n_written) % 2 else f"Mary left room {len(n_written)}."
            n_written.append(row)
        return texts

    monkeypatch.setattr(wim.desk, "write", write_nothing)
    if wim.classifier is not None:
        verdict = wim.classifier.prompts.verdict
        monkeypatch.setattr(
            wim.classifier.prompts, "verdict", lambda query, text: judged.append(text) or verdict(query, text)
        )
    *events, done = wim.ask(QUERY)
    assert isinstance(done, Done) and len(done.margins) == len(wim.plan.chunks) > 3
    assert [event.margin.chunk for event in events if isinstance(event, MarginDone)] == list(range(len(done.margins)))
    for margin in done.margins[1::2]:
        assert (margin.text, margin.relevant, margin.probability) == ("None.", False, None)
    for margin in done.margins[::2]:
        assert (margin.probability is None) == (wim.classifier is None)
    assert judged == ([margin.text for margin in done.margins[::2]] if wim.classifier else [])
