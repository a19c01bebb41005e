"""What fits without margins is read; margins and notes take the room that is left, and what they lack is said."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wim_helpers import QUERY, SETTINGS, document, needed_bytes, write_reader

from model.errors import DoesNotFit
from weights import Checkpoint, sessions
from wim.budget import make_plan
from wim.events import ChunkRead, Margin
from wim.notes import last_prompt
from wim.prompts import Prompts
from wim.reader import open_document

DOCUMENT = document(20)
PATTERNS = ("wim", "llm", "rag")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return Checkpoint.open(str(write_reader(tmp_path_factory.mktemp("reader"), "llama")))


def with_context(checkpoint, n_positions):
    return replace(checkpoint, config=replace(checkpoint.config, context_length=n_positions))


def plan_of(checkpoint, **options):
    return make_plan(checkpoint, DOCUMENT, [QUERY], replace(SETTINGS, **options), Prompts(), checkpoint)


def plain_need(checkpoint, pattern, answer_tokens):
    """Header, document, the question without notes, the answer."""
    plan = plan_of(checkpoint)
    ids = plan.prompts
    last = {"wim": ids.answer_with_margins(QUERY, []), "llm": ids.answer(QUERY), "rag": ids.answer(QUERY)}[pattern]
    need = len(last) + answer_tokens
    if pattern == "rag":
        need = max(need, len(ids.relevance(QUERY)))
    return len(ids.header) + plan.document_tokens + need


@given(
    pattern=st.sampled_from(PATTERNS),
    spare=st.integers(-40, 400),
    margin_tokens=st.integers(1, 120),
    answer_tokens=st.integers(1, 120),
    window=st.sampled_from([1, 2, None]),
)
@settings(max_examples=60)
@example(pattern="wim", spare=0, margin_tokens=100, answer_tokens=1, window=None)
@example(pattern="wim", spare=-1, margin_tokens=1, answer_tokens=1, window=1)
def test_what_fits_without_margins_is_planned_and_nothing_else(
    checkpoint, pattern, spare, margin_tokens, answer_tokens, window
):
    limit = plain_need(checkpoint, pattern, answer_tokens) + spare
    options = {"margin_tokens": margin_tokens, "answer_tokens": answer_tokens, "margin_window": window}
    if spare < 0:
        with pytest.raises(DoesNotFit, match=rf"has {limit}: shorten the document by {-spare} tokens"):
            plan_of(with_context(checkpoint, limit), pattern=pattern, **options)
        return
    plan = plan_of(with_context(checkpoint, limit), pattern=pattern, **options)
    assert plan.min_length == limit - spare <= plan.max_length <= limit
    assert plan.max_length <= plan.capacity
    header = len(plan.prompts.header)
    for chunk, n_tokens in zip(plan.chunks, plan.margin_tokens, strict=False):
        prompt = len(plan.prompts.margin(QUERY, chunk.beginning))
        assert n_tokens == min(margin_tokens, max(0, limit - header - chunk.end - prompt))
    short = [n_tokens for n_tokens in plan.margin_tokens if n_tokens < margin_tokens]
    assert bool(plan.shortages()) == bool(short)
    assert pattern != "wim" or sum(plan.margin_windows(), []) == plan.chunks


def open_in(checkpoint, n_positions, **options):
    return open_document(
        with_context(checkpoint, n_positions),
        DOCUMENT,
        [QUERY],
        replace(SETTINGS, **options),
        classifier=with_context(checkpoint, n_positions),
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


@pytest.mark.parametrize("options", [{}, {"pack": True}, {"margin_window": 2}, {"margin_window": None}], ids=str)
@pytest.mark.parametrize("spare", [0, 7, 60, 150])
def test_a_run_keeps_to_a_short_context(checkpoint, options, spare):
    """Random bytes at full length, all relevant: no token gets a position beyond the context."""
    budgets = {"margin_tokens": 30, "answer_tokens": 12, "temperature": 50.0, "threshold": 0.0}
    limit = plain_need(checkpoint, "wim", 12) + spare
    wim = open_in(checkpoint, limit, **budgets, **options)
    beyond = []

    def check(module, arguments):
        tokens, context = arguments
        beyond.append(context.positions(tokens.shape[1]).max().item() >= limit)

    wim.session.model.register_forward_pre_hook(check)
    *events, done = wim.ask(QUERY)
    assert not any(beyond) and done.answer is not None
    assert sum(isinstance(event, ChunkRead) for event in events) == len(wim.plan.chunks) == done.chunks_read
    written = [margin.chunk for margin in done.margins]
    assert written == [i for i, n_tokens in enumerate(wim.plan.margin_tokens) if n_tokens]
    last_prompt = len(wim.prompts.header) + wim.plan.document_tokens + done.tokens["final_prompt"]
    assert last_prompt + 12 <= limit
    assert spare > 7 or (done.left_out and wim.plan.shortages())


@given(probabilities=st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=6), room=st.integers(0, 200), data=st.data())
@settings(max_examples=60)
def test_the_most_probable_notes_come_first(checkpoint, probabilities, room, data):
    plan = plan_of(checkpoint)
    margins = [
        Margin(
            i % len(plan.chunks), 0, 0, f"Mary saw {'a lamp and ' * data.draw(st.integers(0, 5))}{i}.", True, probability
        )
        for i, probability in enumerate(probabilities)
    ]
    if data.draw(st.booleans()):
        margins.append(Margin(0, 0, 0, "Not this one.", False, 1.0))
    empty = len(plan.prompts.answer_with_margins(QUERY, []))
    if room < empty:
        with pytest.raises(DoesNotFit, match=f"{empty} tokens and {room} are left"):
            last_prompt(plan, QUERY, [Margin(0, 0, 0, "Mary. " * 300)], room)
    room = max(room, empty)
    ids, left_out = last_prompt(plan, QUERY, margins, room)
    kept = [margin for margin in margins if margin.relevant and margin not in left_out]
    assert ids == plan.prompts.answer_with_margins(QUERY, [margin.text for margin in kept]) and len(ids) <= room

    def rank(margin):  # somebody's own, or against the verdict, before all that were judged relevant
        return 2.0 if margin.probability is None or margin.probability < 0.5 else margin.probability

    assert not kept or not left_out or min(map(rank, kept)) >= max(map(rank, left_out))
    if left_out:  # the next one does not fit any more
        best = max(left_out, key=rank)
        more = [margin.text for margin in margins if margin in kept or margin is best]
        assert len(plan.prompts.answer_with_margins(QUERY, more)) > room


def test_windows_shrink_where_memory_is_short(checkpoint, monkeypatch):
    """The same margins, fewer at a time, and a sentence about it; what needs no window is still refused."""
    wide = open_in(checkpoint, 2048, margin_window=None)
    *_, expected = wide.ask(QUERY)
    n_chunks = len(wide.plan.chunks)
    assert wide.plan.margin_window == n_chunks > 2 and wide.plan.shortages() == []
    one = plan_of(checkpoint)
    needed = sum(needed_bytes(one, checkpoint, checkpoint).values())
    monkeypatch.setattr(sessions, "free_bytes", lambda device: needed)
    narrow = open_in(checkpoint, 2048, margin_window=None)
    *_, done = narrow.ask(QUERY)
    assert narrow.plan.margin_window < n_chunks
    [sentence] = narrow.plan.shortages()
    assert f"{narrow.plan.margin_window} at a time instead of {n_chunks}" in sentence
    assert [margin.text for margin in done.margins] == [margin.text for margin in expected.margins]
    assert done.answer == expected.answer and done.left_out == []


def test_a_question_answered_anew_from_edited_margins(checkpoint):
    """By hand: another text, another verdict, a note of somebody's own. Nothing is read again."""
    wim = open_in(checkpoint, 2048)
    *_, first = wim.ask(QUERY)
    *events, again = wim.answer(QUERY, first.margins)
    assert (again.answer, again.tokens["document"], again.tokens["margins"]) == (first.answer, 0, 0)
    margins = [replace(margin, relevant=False) for margin in first.margins]
    margins[1].text, margins[1].relevant = "Mary is on the moon.", True
    margins.append(Margin(0, 0, 0, "She likes it there."))
    read = []
    wim.session.model.register_forward_pre_hook(lambda module, arguments: read.extend(arguments[0].tolist()))
    *events, edited = wim.answer(QUERY, margins)
    notes = ["Mary is on the moon.", "She likes it there."]
    assert read[0] == wim.prompts.answer_with_margins(QUERY, notes)
    assert edited.margins == margins and wim.session.length == wim.desk.chunk_ends[-1]
