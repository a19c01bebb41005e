"""One model over several processes, by gloo on the CPU: model/parallel.py, and how scripts end together (cli/ranks.py)."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace

import pytest
import rank_work
import torch
from hypothesis import given
from hypothesis import strategies as st
from model_variants import PLAIN, VARIANT, tiny_model
from rank_work import PLANNED, behaviour, events_of, started, together
from safetensors.torch import save_file
from wim_helpers import OTHER, QUERY, READERS, SETTINGS, document, write_reader

from model import InputError, empty_model
from model.parallel import Rank
from model.processes import Process
from model.session import Session
from weights.config import read_model_config

# What is cut in ways of its own: tied vocabularies, biases, many key heads; and what attends in ways of its own.
NAMES = ("llama-tied", "llama-biases", "qwen2-mha-tied", "qwen3-biases", "phi3-window", "phi3-longrope", "mistral-defaults")
SHARED_BY_2 = [*PLAIN, *(VARIANT[name] for name in NAMES)]
BY_4 = [*PLAIN, VARIANT["llama-biases"], VARIANT["phi3-mha"], VARIANT["qwen3-biases"]]
SHARED_BY_4 = [replace(variant, config=variant.config | {"num_key_value_heads": 4}) for variant in BY_4]
TEXT = document(8)
SHORT = vars(SETTINGS) | {"margin_tokens": 5, "answer_tokens": 5}
KINDS = [
    {"margins": "both", "underlines": 3, "margin_window": None},
    {},
    {"pack": True},
    {"pattern": "rag"},
    {"temperature": 1.0, "seed": 1},
]


@pytest.mark.parametrize("size, variants", [(2, SHARED_BY_2), (4, SHARED_BY_4[-3:])], ids=["two", "four"])
def test_a_session_of_several_processes_is_that_of_one(size, variants, tmp_path):
    """Logits, sampled tokens, branches, probabilities, attention over all heads; and a rollback moves the pointer only."""
    places, alone = [], []
    for variant in variants:
        folder = tmp_path / variant.name
        folder.mkdir()
        model = tiny_model(variant, PLANNED)
        save_file({name: value.contiguous() for name, value in model.named_parameters()}, folder / "model.safetensors")
        alone.append(behaviour(Session(model, PLANNED), variant.prompt))
        places.append((folder, variant.full_config(), "float", variant.prompt))
    in_int8 = [(folder, config, "int8", n_tokens) for folder, config, _, n_tokens in places[-1:]]
    first, *others = together(size, rank_work.behaviours, places + in_int8)
    assert all(other == first for other in others)
    # A scale for each part of a row is not that for all of it, but both are near to what was rounded.
    assert first.pop()["logits"] == pytest.approx(first[-1]["logits"], abs=0.3)
    for variant, seen, expected in zip(variants, first, alone, strict=True):
        for exact in ("tokens", "branches", "length", "in place"):
            assert seen[exact] == expected[exact], (variant, exact)
        for close in ("logits", "probability"):
            assert seen[close] == pytest.approx(expected[close], abs=2e-4), (variant, close)
        for spans, expected_spans in zip(seen["attention"], expected["attention"], strict=True):
            assert spans == pytest.approx(expected_spans, rel=1e-3, abs=1e-5), variant


def test_whole_runs_of_several_processes_are_those_of_one(tmp_path):
    """Event for event: margins, verdicts, underlined sentences, answers, and a further question; each family, each kind."""
    folders = [str(write_reader(tmp_path / v.name, v.name)) for v in PLAIN if v.name in READERS]
    options = [SHORT | kind for kind in KINDS]
    wanted = [(folder, each) for i, folder in enumerate(folders) for each in (options if i == 0 else options[:1])]
    first, second = together(2, rank_work.every_run, TEXT, [QUERY, OTHER], wanted)
    assert first == second
    for events, (folder, each) in zip(first, wanted, strict=True):
        same(events, events_of(None, folder, TEXT, [QUERY, OTHER], each))


def same(events, expected):
    """The same but for roundings."""
    assert [kind for kind, _ in events] == [kind for kind, _ in expected]
    for (_, event), (_, other) in zip(events, expected, strict=True):
        assert rounded(event) == rounded(other)


def rounded(value):
    match value:
        case float():
            return pytest.approx(value, rel=1e-3, abs=1e-5)
        case dict():
            return {key: rounded(each) for key, each in value.items()}
        case list():
            return [rounded(each) for each in value]
    return value


def test_all_stop_where_the_first_stops(tmp_path):
    folder = str(write_reader(tmp_path / "llama", "llama"))
    first, second = together(2, rank_work.stopped, folder, TEXT, QUERY, SHORT)
    assert first == second
    read = [event for event in first if event.startswith("ChunkRead")]
    assert 2 <= len(read) <= 3 and "chunk=1," in read[1]


# What a rank takes --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 300), st.integers(1, 9))
def test_everything_is_somebodys(n, size):
    assert [i for index in range(size) for i in Process(index, size).own(n)] == list(range(n))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("variant", SHARED_BY_4, ids=str)
def test_the_parts_of_all_ranks_are_the_whole(variant, size):
    config = read_model_config(variant.full_config())
    whole = dict(tiny_model(variant, PLANNED).named_parameters())
    ranks = [Rank(index, size) for index in range(size)]
    cuts = [rank.cuts(config) for rank in ranks]
    parts = [dict(empty_model(config, torch.float32, rank=rank).named_parameters()) for rank in ranks]
    assert set(cuts[0]) <= set(whole)
    for name, value in whole.items():
        taken = [cut[name].ranges if name in cut else None for cut in cuts]
        if taken[0] is None:
            assert taken[1:] in ([None] * (size - 1), [()] * (size - 1)), name  # all have it, or the first alone
            assert parts[0][name].shape == value.shape and all((name in part) == (taken[1] is None) for part in parts[1:])
        else:
            indices = sorted(i for ranges in taken for own in ranges for i in own)
            assert indices == list(range(value.shape[cuts[0][name].dim])), name
            assert sum(part[name].numel() for part in parts) == value.numel(), name


@pytest.mark.parametrize(
    "changes, size, said",
    [
        ({}, 3, "2 heads of keys and values, which 3 processes"),
        ({"num_key_value_heads": 1}, 2, "1 heads of keys and values, which 2 processes"),
        ({"num_key_value_heads": 4, "intermediate_size": 50}, 4, "50 inner channels in its MLP, which 4 processes"),
    ],
)
def test_what_cannot_be_shared_evenly_is_refused_in_a_sentence(changes, size, said):
    with pytest.raises(InputError, match=said):
        Rank(0, size).share(read_model_config(VARIANT["llama"].full_config(**changes)))


# How scripts end ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def running(tmp_path):
    """scripts/generate.py in two processes, and what the first has said so far; `begun` waits until it says something."""
    paper = tmp_path / "paper.txt"
    paper.write_text(document(400), encoding="utf-8")

    def start(*options):
        return started(2, rank_work.script, tmp_path, ["--device", "cpu", "--dtype", "float32", *options])

    start.said = lambda rank=0: (tmp_path / f"err.{rank}").read_text() if (tmp_path / f"err.{rank}").exists() else ""
    start.answer = lambda rank=0: (tmp_path / f"out.{rank}").read_text()
    start.paper = str(paper)
    return start


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this does not come about"
        time.sleep(0.01)


def ended(ranks, seconds=20.0):
    """Their exit codes. They must end by themselves."""
    until(lambda: not any(rank.is_alive() for rank in ranks), seconds)
    return [rank.exitcode for rank in ranks]


def test_an_error_that_all_have_is_said_once(running):
    with running("--context", running.paper, "--query", QUERY, "--answer-tokens", "99999") as (ranks, _):
        assert ended(ranks) == [2, 2]
    assert (running.said(0) + running.said(1)).count("error:") == 1 and "positions" in running.said(0) + running.said(1)


@pytest.mark.parametrize("death", ["killed", "hangs"])
def test_a_process_that_dies_ends_all_with_a_sentence(running, death):
    """Gloo notices a lost connection. Cards do not, nor does anybody notice a process that hangs: then torchrun says so."""
    with running("--margin-window", "1") as (ranks, _):
        until(lambda: "[chunk" in running.said())
        if death == "killed":
            ranks[1].kill()
        else:
            os.kill(ranks[1].pid, signal.SIGSTOP)
            ranks[0].terminate()
        assert ended(ranks[:1])[0] in (1, 2)
    assert running.said().count("error: Another of the processes") == 1 and "Traceback" not in running.said()


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_stops_the_reading_in_all_and_a_second_one_ends_all(running, presses):
    """Torchrun hands it to every process, of which the first decides."""
    with running("--margin-window", "1") as (ranks, _):
        until(lambda: "[chunk" in running.said())
        for _ in range(presses):
            for rank in ranks:
                os.kill(rank.pid, signal.SIGINT)
            until(lambda: "Reading stops" in running.said())
        codes = ended(ranks)
    assert "Traceback" not in running.said() and "error" not in running.said()
    if presses == 1:
        assert codes == [0, 0] and running.answer().strip()
    else:
        assert codes[0] == 130 and codes[1] in (1, 2) and "Interrupted." in running.said() and not running.answer()
