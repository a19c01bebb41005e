"""Room is known before work starts: budgets, contexts, memory."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from weights_helpers import write_checkpoint
from wim_helpers import (
    DEMO,
    DOCUMENT,
    OTHER,
    QUERY,
    SETTINGS,
    UNEVEN,
    ask,
    document,
    done,
    margin_prompts,
    needed_bytes,
    open_wim,
    plain_readers,
    prompts_of,
)

from model import InputError
from weights import Checkpoint, sessions
from wim.budget import make_plan
from wim.events import Done
from wim.needs import NOTE_EDGES
from wim.prompts import Prompts
from wim.reader import wanted_sessions
from wim.room import check_question

# Room ---------------------------------------------------------------------------------------------------------------------


REPEATING = Prompts(
    verdict="{margin} {margin} {query}?", answer_with_margins="{margins} {query} {margins} {margins} {query}"
)


@plain_readers
@pytest.mark.parametrize("prompts", [Prompts(), REPEATING], ids=["own", "repeating"])
@pytest.mark.parametrize("window", [1, 3, None])
def test_the_planned_room_is_enough_for_the_longest_run(folders, name, window, prompts):
    """Margins of random bytes at their full length, all relevant; then nothing is left over that was not planned."""
    lengths = {"margin_tokens": 25, "answer_tokens": 30}
    wim = open_wim(
        folders[name], DOCUMENT, margin_window=window, prompts=prompts, temperature=50.0, threshold=0.0, **lengths
    )
    last = done(ask(wim))
    assert last.tokens["margins"] > 20 * len(last.margins)
    assert "\ufffd" in "".join(margin.text for margin in last.margins)
    assert wim.session.cache.capacity == wim.plan.capacity


@plain_readers
@pytest.mark.parametrize("text", [UNEVEN, UNEVEN[::-1]], ids=["emoji-last", "emoji-first"])
def test_the_longest_margin_prompt_is_planned_for(folders, name, text):
    wim = open_wim(folders[name], text, [QUERY, OTHER], margin_window=None)
    longest = max(len(prompt) for query in (QUERY, OTHER) for prompt in margin_prompts(wim, query))
    read = len(wim.prompts.header) + wim.plan.document_tokens
    assert wim.plan.capacity == read + len(wim.plan.chunks) * (longest + SETTINGS.margin_tokens)
    assert done(ask(wim)).tokens["margins"] > 0


@pytest.mark.parametrize("name", ["llama", "phi3", "qwen2", DEMO])
@given(data=st.data(), margin_tokens=st.integers(1, 60), n_chunks=st.integers(1, 4))
def test_no_margin_can_outgrow_its_place(folders, name, data, margin_tokens, n_chunks):
    """Whatever ids a model writes, their text comes back as no more tokens than are planned for."""
    prompts = prompts_of(folders[name], margin_tokens)
    tokenizer = prompts.tokenizer
    anything = st.integers(0, tokenizer.vocab_size - 1)
    # Lines of one word each come back with spaces instead of line ends.
    words = [token for token in range(0, tokenizer.vocab_size, 7) if tokenizer.decode([token]).isalpha()]
    ids = st.one_of(anything, st.sampled_from(words), st.sampled_from(tokenizer.encode("\n\n.\n")))
    line = st.tuples(st.sampled_from(words), st.just(tokenizer.encode("a\nb")[1])).map(list)
    margin = st.one_of(
        st.lists(ids, max_size=margin_tokens), st.builds(lambda line: (line * margin_tokens)[:margin_tokens], line)
    )
    drawn = data.draw(st.lists(margin, min_size=n_chunks, max_size=n_chunks))
    margins = [tokenizer.decode(tokens).strip() for tokens in drawn]
    note = margin_tokens + NOTE_EDGES
    final, framed = prompts.answer_with_margins(QUERY, margins), prompts.answer_with_margins(QUERY, ["-"])
    assert len(final) <= len(framed) + n_chunks * note
    assert max(len(prompts.verdict(QUERY, text)) for text in margins) <= len(prompts.verdict(QUERY, "")) + note


def test_what_exceeds_the_context_is_refused_before_weights_are_read(folders, monkeypatch):
    monkeypatch.setattr("weights.checkpoint.load_weights", refuse_to_load)
    with pytest.raises(InputError) as error:
        open_wim(folders["llama"], document(400))
    message = str(error.value)
    plan = plan_without_limits(folders["llama"], document(400))
    for number in (plan.document_tokens, plan.min_length, 2048, plan.min_length - 2048):
        assert str(number) in re.findall(r"\b\d+\b", message), (number, message)


@plain_readers
@pytest.mark.parametrize(
    "options",
    [{}, {"margin_window": None}, {"margins": "underlined"}, {"pattern": "llm"}, {"pattern": "rag"}],
    ids=["window-1", "window-all", "underlined", "llm", "rag"],
)
def test_a_question_that_was_not_planned_for_is_answered_if_it_fits_and_else_refused(folders, name, options):
    """Each one word longer than the one before: a sentence with the numbers, and never an answer from half the room."""
    wim = open_wim(folders[name], DOCUMENT, **options)
    refused = 0
    for n in range(0, 60, 4):
        query = QUERY + " Mary?" * n
        try:
            assert isinstance(done(ask(wim, query)), Done)
            assert not refused
        except InputError as error:
            n_tokens, needed, there = map(int, re.findall(r"\b\d+\b", str(error)))
            assert n_tokens == len(wim.prompts.tokenizer.encode(query)) and needed > there
            refused += 1
    assert refused > 2 and done(ask(wim)).answer


def refuse_to_load(*arguments, **options):
    raise AssertionError("weights were read")


def plan_without_limits(folder, text):
    checkpoint = Checkpoint.open(str(folder))
    object.__setattr__(checkpoint.config, "context_length", 10**6)
    return make_plan(checkpoint, text, [QUERY], SETTINGS, Prompts(), checkpoint)


@pytest.mark.parametrize("classifier", ["same", None, "phi3"])
def test_what_exceeds_the_memory_is_refused_before_weights_are_read(folders, monkeypatch, classifier):
    monkeypatch.setattr("weights.checkpoint.load_weights", refuse_to_load)
    monkeypatch.setattr(sessions, "free_bytes", lambda device: 100_000)
    with pytest.raises(InputError, match=r"needs \d+\.\d GiB for weights, .* cache of \d+ positions .* has 0\.0 GiB free"):
        open_wim(folders["llama"], DOCUMENT, classifier=folders.get(classifier, classifier))


def test_what_just_fits_is_not_refused(folders, monkeypatch):
    checkpoint = Checkpoint.open(str(folders["llama"]))
    plan = make_plan(checkpoint, DOCUMENT, [QUERY], SETTINGS, Prompts(), checkpoint)
    while (smaller := plan.smaller()) is not None:
        plan = smaller
    needed = sum(needed_bytes(plan, checkpoint, checkpoint).values())
    monkeypatch.setattr(sessions, "free_bytes", lambda device: needed)
    open_wim(folders["llama"], DOCUMENT)
    monkeypatch.setattr(sessions, "free_bytes", lambda device: needed - 1)
    with pytest.raises(InputError):
        open_wim(folders["llama"], DOCUMENT)


def test_int8_weights_need_less_room(folders, monkeypatch):
    """What just fits with them is not refused, and without them it is; what is held is what was said."""
    checkpoint = Checkpoint.open(str(folders["llama"]))
    plan = make_plan(checkpoint, DOCUMENT, [QUERY], SETTINGS, Prompts(), checkpoint)
    wanted = wanted_sessions(plan, checkpoint, checkpoint)
    cpu, float32 = torch.device("cpu"), torch.float32
    needed = sessions.needed_bytes(wanted, float32, "int8")
    assert needed["weights"] < 0.8 * sessions.needed_bytes(wanted, float32)["weights"]
    monkeypatch.setattr(sessions, "free_bytes", lambda device: sum(needed.values()))
    with pytest.raises(InputError, match="GiB for weights"):
        sessions.Sessions(cpu, float32).check_room(wanted)
    int8 = sessions.Sessions(cpu, float32, weights="int8")
    int8.check_room(wanted)
    assert sum(weight.nbytes for weight in int8.open(wanted[0]).model.parameters()) == needed["weights"]


def test_prompts_that_are_read_together_need_room_to_work_in(folders):
    checkpoint = Checkpoint.open(str(folders["llama"]))

    def work(question, window):
        settings = replace(SETTINGS, margin_window=window)
        plan = make_plan(checkpoint, DOCUMENT, [question], settings, Prompts(), checkpoint)
        assert len(plan.chunks) > 1
        return needed_bytes(plan, checkpoint, checkpoint)["work"]

    one, all_ = work(QUERY * 5, 1), work(QUERY * 5, None)
    assert all_ > one > 0


def test_the_weights_and_the_cache_take_what_was_said(folders):
    wim = open_wim(folders["llama"], DOCUMENT, classifier=folders["phi3"])
    checkpoints = Checkpoint.open(str(folders["llama"])), Checkpoint.open(str(folders["phi3"]))
    needed = needed_bytes(wim.plan, *checkpoints)
    models = wim.session.model, wim.classifier.session.model
    assert needed["weights"] == sum(weight.nbytes for model in models for weight in model.parameters())
    assert needed["cache"] == wim.session.cache.nbytes + wim.classifier.session.cache.nbytes


@pytest.mark.parametrize(
    "changes",
    [
        {"pattern": "fast"},
        {"chunk_tokens": 0},
        {"margin_tokens": 0},
        {"answer_tokens": -1},
        {"margin_window": 0},
        {"threshold": 1.5},
        {"threshold": float("nan")},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_get_a_sentence(folders, changes):
    with pytest.raises(InputError) as error:
        open_wim(folders["llama"], DOCUMENT, **changes)
    [value] = changes.values()
    assert str(value) in str(error.value)


def test_a_tokenizer_that_cannot_tell_yes_from_no_gives_no_verdicts(tmp_path):
    folder = write_checkpoint(tmp_path, "phi3", max_position_embeddings=2048)
    for options in ({}, {"pattern": "rag"}, {"pattern": "rag", "classifier": None}):
        with pytest.raises(InputError, match="YES and NO with the same token.*--classifier none"):
            open_wim(folder, DOCUMENT, **options)
    assert done(ask(open_wim(folder, DOCUMENT, classifier=None))).margins
    assert done(ask(open_wim(folder, DOCUMENT, pattern="llm"))).margins == []


@pytest.mark.parametrize("pattern", ["llm", "rag", "wim"])
def test_a_plan_of_several_patterns_has_room_for_another_question_with_each(folders, pattern):
    checkpoint = Checkpoint.open(str(folders["llama"]))
    plan = make_plan(checkpoint, DOCUMENT, [QUERY + QUERY], SETTINGS, classifier=checkpoint, patterns=["llm", "rag", "wim"])
    check_question(plan, QUERY, pattern)
    with pytest.raises(InputError, match="was not planned for"):
        check_question(plan, QUERY * 200, pattern)


@pytest.mark.parametrize("text", ["", " \n\t "])
def test_an_empty_document_gets_a_sentence(folders, text):
    with pytest.raises(InputError, match="document is empty"):
        open_wim(folders["llama"], text)
