"""wim.json: what a checkpoint wants that brings wishes of its own."""

from __future__ import annotations

import argparse
import json
import shutil

import pytest
import torch
from cli.options import add_checkpoint_options, add_reading_options, reading_prompts, reading_settings
from weights_helpers import write_json
from wim_helpers import QUERY, ask, document, open_wim, write_reader

from model import InputError
from weights import DEMOS, Checkpoint
from weights.files import SMALL_FILES
from wim.prompts import Prompts
from wim.reader import open_document
from wim.settings import WISHED, WISHES, Settings, Wishes

CHANGED = {"answer": "Tell me: {query}", "verdict": "{margin}? {query}?"}


@pytest.fixture
def folder(tmp_path):
    return write_reader(tmp_path / "reader", "llama")


def options(folder, *given):
    parser = argparse.ArgumentParser()
    add_checkpoint_options(parser)
    add_reading_options(parser, margin_window="1")
    return parser.parse_args(["--model", str(folder), *given])


def test_a_folder_without_the_file_wishes_for_nothing(folder):
    wishes = Wishes.of(folder)
    assert (wishes.values, wishes.prompts, wishes.settings()) == ({}, Prompts(), Settings())


@pytest.mark.parametrize("tasks", [[], ["single_fact", "counting"]])
def test_the_tasks_that_it_wants_to_be_measured_with_are_no_settings(folder, tasks):
    write_json(folder / WISHES, {"tasks": tasks})
    wishes = Wishes.of(folder)
    assert (wishes.values, wishes.tasks) == ({}, tuple(tasks))


@pytest.mark.parametrize("name", WISHED)
def test_what_the_checkpoint_wishes_stands_unless_a_person_gives_another(folder, name):
    value, other = {"threshold": (0.25, 1), "margins": ("underlined", "both")}.get(name, (17, 1))
    write_json(folder / WISHES, {name: value})
    checkpoint = Checkpoint.open(str(folder))
    assert vars(reading_settings(options(folder), checkpoint)) == vars(Settings()) | {name: value}
    written = ["--margins", "written"] if name == "threshold" else []  # underlined ones are not judged by it
    own = options(folder, f"--{name.replace('_', '-')}", str(other), *written)
    assert getattr(reading_settings(own, checkpoint), name) == other


def test_prompts_of_the_checkpoint_stand_unless_a_person_gives_some(folder, tmp_path):
    write_json(folder / WISHES, {"prompts": CHANGED})
    write_json(tmp_path / "mine.json", {"answer": "{query} (mine)"})
    checkpoint = Checkpoint.open(str(folder))
    assert reading_prompts(options(folder), checkpoint) is None
    mine = reading_prompts(options(folder, "--prompts", str(tmp_path / "mine.json")), checkpoint)
    assert vars(mine) == vars(Prompts()) | CHANGED | {"answer": "{query} (mine)"}
    assert open_wim(folder, document()).prompts.prompts == Wishes.of(folder).prompts
    assert open_wim(folder, document(), prompts=mine).prompts.prompts == mine


def test_each_model_is_asked_as_it_wishes(folder, tmp_path):
    judge = write_reader(tmp_path / "judge", "qwen2")
    write_json(judge / WISHES, {"prompts": CHANGED})
    wim = open_wim(folder, document(), classifier=judge)
    assert wim.prompts.prompts == Prompts()
    assert vars(wim.plan.classifier_prompts.prompts) == vars(Prompts()) | CHANGED
    assert all(0 <= margin.probability <= 1 for margin in ask(wim)[-1].margins)


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "is not JSON"),
        ([1], "should hold a JSON object"),
        ({"chunks": 3}, "names 'chunks'; it may name: chunk_tokens, margin_tokens"),
        ({"chunk_tokens": "many"}, "chunk_tokens = 'many'"),
        ({"chunk_tokens": 2.5}, "chunk_tokens = 2.5"),
        ({"margin_tokens": True}, "margin_tokens = True"),
        ({"answer_tokens": None}, "answer_tokens = None"),
        ({"chunk_tokens": 0}, "chunk_tokens is 0; it should be at least 1"),
        ({"threshold": 7}, "threshold is 7"),
        ({"prompts": "Be brief."}, "under 'prompts', should hold one JSON object"),
        ({"prompts": {"margins": "{query}"}}, "names 'margins'"),
        ({"prompts": {"answer": "Tell me."}}, "placeholders {query}"),
        ({"prompts": None}, "should hold one JSON object"),
        ({"tasks": "counting"}, "says tasks = 'counting'; give a list of their names"),
        ({"tasks": [1]}, "says tasks = [1]; give a list of their names"),
    ],
    ids=str,
)
def test_a_file_that_cannot_be_used_gets_a_sentence(folder, content, words):
    (folder / WISHES).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError) as error:
        open_wim(folder, document())
    assert words in str(error.value) and str(folder / WISHES) in str(error.value)


def test_the_file_is_fetched_with_the_small_ones():
    assert WISHES in SMALL_FILES


@pytest.mark.parametrize("name", sorted(DEMOS))
def test_a_copied_demo_behaves_like_the_demo(tmp_path, name):
    """The shipped folder asks as it was trained, in full, whatever the project's own wording may become."""
    shutil.copytree(DEMOS[name], tmp_path / "copy")
    said = json.loads((tmp_path / "copy" / WISHES).read_text())
    assert set(said["prompts"]) == set(vars(Prompts()))
    runs = []
    for model in (name, str(tmp_path / "copy")):
        checkpoint = Checkpoint.open(model)
        settings = reading_settings(options(model), checkpoint)
        assert (settings.chunk_tokens, settings.margin_tokens) == (said["chunk_tokens"], said["margin_tokens"])
        device = torch.device("cpu")
        text = document(40)
        wim = open_document(checkpoint, text, [QUERY], settings, classifier=checkpoint, device=device, dtype=torch.float32)
        done = ask(wim)[-1]
        assert vars(wim.prompts.prompts) == vars(wim.plan.classifier_prompts.prompts) == said["prompts"]
        runs.append((done.answer, done.margins, done.tokens))
    assert runs[0] == runs[1] and len(runs[0][1]) > 1
