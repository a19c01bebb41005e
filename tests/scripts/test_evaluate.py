"""scripts/evaluate.py and scripts/evaluation/: a run, its table, going on after an interruption, and one cache for all."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import islice, repeat
from math import sqrt
from pathlib import Path

import pytest
import torch
from evaluation import results as results_module
from evaluation.ahead import ahead
from evaluation.margins import count_notes, count_right, note_table, right_table
from evaluation.results import Results, fingerprint
from evaluation.source import Cell, Source, Work
from evaluation.table import ScoreTable, difference, estimate
from evaluation.workers import side_by_side
from tasks import NO_EVIDENCE, TASKS
from weights_helpers import LLAMA_TEMPLATE, write_checkpoint, write_json

from model import InputError
from weights import DEMOS, Checkpoint, Tokenizer
from weights.sessions import Sessions, same_rotation
from wim.budget import make_plan
from wim.events import Done
from wim.prompts import Prompts
from wim.reader import Reader, open_document
from wim.settings import Settings, Wishes

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import evaluate  # noqa: E402

CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
SETTINGS = Settings(chunk_tokens=128, margin_tokens=4, answer_tokens=4, margin_window=None)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("checkpoint"), "llama", max_position_embeddings=2048))


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """Where --workers does not say otherwise: the models are small, and processes take seconds to start."""
    monkeypatch.setattr(evaluate, "usable_cores", lambda: 1)


def arguments(folder: str, out: Path, *more: str) -> list[str]:
    """A small run: two families of tasks at two lengths."""
    small = "--tasks single_fact,two_facts,listing,common_words --lengths 560,640 --documents 2 --statements 8"
    budgets = "--margins written --chunk-tokens 128 --margin-tokens 4 --answer-tokens 4 --device cpu"
    return ["--model", folder, "--out", str(out), *small.split(), *budgets.split(), *more]


def read(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()]


def timeless(records: list[dict]) -> dict:
    """By key, without what differs from run to run: the clock, and which question happened to read the document."""
    named = {results_module.key_of(record): dict(record) for record in records}
    for record in named.values():
        del record["seconds"], record["tokens"]["document"]
    return named


@pytest.fixture(scope="session")  # 5 seconds, and tests of other files come between these
def whole(folder, tmp_path_factory) -> Path:
    """The results of an uninterrupted run."""
    out = tmp_path_factory.mktemp("whole")
    assert evaluate.main(arguments(folder, out)) == 0
    return out


# A run ----------------------------------------------------------------------------------------------------------------


def test_every_answer_is_recorded_with_its_margins(whole):
    records = read(whole)
    assert len(records) == 4 * 2 * 2 * 3  # tasks, lengths, documents, patterns
    for record in records:
        assert set(record["scores"]) >= {"score", "exact_match"} and record["query"] and record["target"]
        assert record["length"] * 0.9 < record["document_tokens"] <= record["length"]
        if record["pattern"] == "wim":
            assert [margin["chunk"] for margin in record["margins"]] == list(range(len(record["margins"])))
            golds = [margin["gold"] for margin in record["margins"]]
            assert any(gold != NO_EVIDENCE for gold in golds)
            for margin in record["margins"]:
                assert margin["word_for_word"] == (margin["text"].split() == margin["gold"].split())
                relevant = (margin["probability"] or 0.0) >= 0.5  # nobody is asked about one that says nothing
                assert margin["verdict_right"] == (relevant == (margin["gold"] != NO_EVIDENCE))
        if record["pattern"] == "rag":
            assert len(record["chunks"]) >= 4 and record["seconds"]["verdicts"] > 0


def test_a_document_is_read_once_for_all_questions_of_llm_and_wim(whole):
    records = [record for record in read(whole) if record["length"] == 640 and record["document"] == 1]
    story = [record for record in records if record["task"] != "common_words" and record["pattern"] != "rag"]
    assert len(story) == 6
    assert [record["tokens"].get("document", 0) for record in story] == [story[0]["document_tokens"], 0, 0, 0, 0, 0]


def test_settings_are_stored(whole, folder):
    stored = json.loads((whole / "settings.json").read_text())
    assert stored["settings"]["chunk_tokens"] == 128 and stored["settings"]["seed"] == 0
    assert len(stored["settings"]["weights"][folder]) == 16 and stored["settings"]["dtype"] == "float32"
    assert stored["asked"]["documents"] == 2 and stored["asked"]["patterns"] == ["llm", "rag", "wim"]


def test_a_finished_run_prints_its_table_again_and_adds_nothing(whole, folder, capsys):
    before = (whole / "answers.jsonl").read_bytes()
    assert evaluate.main(arguments(folder, whole)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (whole / "answers.jsonl").read_bytes() == before
    tasks = [line.split("|")[1].strip() for line in lines if line.startswith("| ")]
    story = ["single_fact", "two_facts", "listing"]
    scores = [*story, "mean of several", *story, "mean of several", "common_words", "common_words"]
    table = ["task", *story, *story, "common_words", "common_words"]
    assert tasks == ["task", *scores, *table, *table]
    assert max(map(len, lines)) <= 100
    assert "listing, common_words: F1 of the items of the list" in lines


# Going on -------------------------------------------------------------------------------------------------------------


def interrupt_after(n_answers, monkeypatch):
    """As Ctrl-C would, when so many answers have been recorded."""
    add = Results.add

    def add_some(self, record):
        if len(self.records) == n_answers:
            raise KeyboardInterrupt
        add(self, record)

    monkeypatch.setattr(Results, "add", add_some)


def test_an_interrupted_run_goes_on_where_it_stopped(whole, folder, tmp_path, monkeypatch, capsys):
    interrupt_after(17, monkeypatch)
    assert evaluate.main(arguments(folder, tmp_path)) == 130
    assert "goes on from here" in capsys.readouterr().err
    monkeypatch.undo()
    answers = tmp_path / "answers.jsonl"
    kept = answers.read_bytes()
    answers.write_bytes(kept + b'{"task": "listing", "len')  # the power went off within a line

    assert evaluate.main(arguments(folder, tmp_path)) == 0
    assert answers.read_bytes().startswith(kept)
    assert len(read(tmp_path)) == len(read(whole))
    assert timeless(read(tmp_path)) == timeless(read(whole))


def test_processes_side_by_side_answer_the_same_and_go_on_too(whole, folder, tmp_path, capsys):
    kept = read(whole)[:17]
    shutil.copy(whole / "settings.json", tmp_path)
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(record) + "\n" for record in kept))
    assert evaluate.main(arguments(folder, tmp_path, "--workers", "2")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert read(tmp_path)[:17] == kept and len(read(tmp_path)) == len(read(whole))
    assert timeless(read(tmp_path)) == timeless(read(whole))
    assert evaluate.main(arguments(folder, whole)) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_who_goes_away_ends_the_processes():
    """As Ctrl-C does: what they send is no longer taken."""
    stream = side_by_side([partial(repeat, "thing")])
    assert next(stream) == "thing"
    stream.close()
    assert not multiprocessing.active_children()


def test_an_error_in_a_process_ends_the_run():
    with pytest.raises(InputError, match="no folder './nowhere'"):
        list(side_by_side([partial(Checkpoint.open, "./nowhere"), partial(time.sleep, 60)]))
    assert not multiprocessing.active_children()


def test_a_lost_process_is_told():
    with pytest.raises(InputError, match=r"lost \(exit code 7;"):
        list(side_by_side([partial(os._exit, 7)]))


def test_several_processes_are_for_the_cpu(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("weights.device.pick_device", lambda name: torch.device("cuda"))
    assert evaluate.main(arguments(folder, tmp_path, "--dtype", "float32", "--workers", "2")) == 2
    assert "--workers is 2, and one process keeps cuda busy" in capsys.readouterr().err


def test_more_can_be_asked_for_later(whole, folder, tmp_path):
    """Tasks, lengths, patterns and the number of documents change no answer, so they may grow."""
    assert evaluate.main(arguments(folder, tmp_path, "--tasks", "two_facts", "--documents", "1", "--patterns", "wim")) == 0
    first = read(tmp_path)
    assert len(first) == 2
    assert evaluate.main(arguments(folder, tmp_path, "--tasks", "two_facts,listing", "--lengths", "640")) == 0
    assert read(tmp_path)[:2] == first
    wanted = timeless(read(whole))
    for key, record in timeless(read(tmp_path)).items():
        assert record["answer"] == wanted[key]["answer"] and record["query"] == wanted[key]["query"]


def test_other_settings_are_refused(whole, folder, capsys):
    before = (whole / "answers.jsonl").read_bytes()
    assert evaluate.main(arguments(folder, whole, "--margin-tokens", "5", "--seed", "1")) == 2
    error = capsys.readouterr().err
    assert "margin_tokens: 4, not 5" in error and "seed: 0, not 1" in error and error.count("\n") == 1
    assert (whole / "answers.jsonl").read_bytes() == before


def test_a_changed_checkpoint_is_refused(folder, tmp_path, capsys):
    copy = write_checkpoint(tmp_path / "model", "llama", seed=1, max_position_embeddings=2048)
    one = ["--tasks", "common_words", "--patterns", "llm", "--lengths", "560", "--documents", "1"]
    assert evaluate.main(arguments(str(copy), tmp_path / "out", *one)) == 0
    write_checkpoint(copy, "llama", seed=2, max_position_embeddings=2048)
    assert evaluate.main(arguments(str(copy), tmp_path / "out", *one)) == 2
    assert "weights" in capsys.readouterr().err


def change_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "file, changes, said",
    [
        ("tokenizer_config.json", {"chat_template": LLAMA_TEMPLATE.replace("Knowledge up to", "Until")}, "small_files"),
        ("config.json", {"rope_theta": 500.0}, "small_files"),
        ("generation_config.json", {"eos_token_id": 3}, "small_files"),
        ("corpus.json", {"body": "One. One is not. Less."}, "contents"),
    ],
)
def test_changed_small_files_and_articles_are_refused(tmp_path, capsys, file, changes, said):
    model = write_checkpoint(tmp_path / "model", "llama", max_position_embeddings=2048)
    (model / "generation_config.json").write_text('{"eos_token_id": 2}')
    (tmp_path / "corpus.json").write_text(json.dumps({"title": "T", "url": "u", "body": "One. One is not. More."}))
    query = {"query": "Which?", "answer": "Yes", "evidence_list": [{"url": "u", "fact": "One is not."}]}
    (tmp_path / "data.json").write_text(json.dumps([query]))
    options = ["--data", str(tmp_path / "data.json"), "--patterns", "llm", "--answer-tokens", "2", "--device", "cpu"]
    command = ["--model", str(model), "--out", str(tmp_path / "out"), *options]
    assert evaluate.main(command) == evaluate.main(command) == 0
    change_json((tmp_path if file == "corpus.json" else model) / file, **changes)
    assert evaluate.main(command) == 2
    assert f"results of other settings ({said}: " in capsys.readouterr().err


def test_whole_files_count_but_of_weights_their_ends(tmp_path):
    for name in ("a.json", "a.safetensors"):
        (tmp_path / name).write_bytes(bytes(3 << 20))
    before = [fingerprint([tmp_path / name]) for name in ("a.json", "a.safetensors")]
    for name in ("a.json", "a.safetensors"):
        with (tmp_path / name).open("r+b") as file:
            file.seek(3 << 19)
            file.write(b"x")
    after = [fingerprint([tmp_path / name]) for name in ("a.json", "a.safetensors")]
    assert before[0] != after[0] and before[1] == after[1]


@pytest.mark.parametrize(
    "wrong, said",
    [
        (["--tasks", "two_fact"], "--tasks names 'two_fact'"),
        (["--patterns", "llm,wom"], "--patterns names 'wom'"),
        (["--lengths", "1K"], "--lengths names '1K'"),
        (["--lengths", "9" * 5000], "of at most 9 digits"),
        (["--lengths", "4096"], "2048 positions"),
        (["--lengths", "2040"], "needs"),
        (["--lengths", "50"], "allow more tokens"),
        (
            ["--margins", "underlined", "--patterns", "llm,wim", "--threshold", "0.4"],
            "--threshold is about written margins",
        ),
        (["--margins", "underlined", "--margin-window", "1"], "--margin-window is about written margins"),
        (["--documents", "0"], "--documents is 0"),
        (["--documents", "1" + 20 * "0"], "at most 100,000"),
        (["--questions", "1000000"], "--questions is 1000000; give at least 1 and at most 1,000"),
        (["--statements", "99999999"], "at most 10,000"),
        (
            ["--margins", "written", "--chunk-tokens", "1" + 20 * "0", "--margin-tokens", "1" + 20 * "0"],
            "lower --margin-tokens",
        ),
        (["--tasks", "x" * 5000], "[…]"),
        (["--workers", "0"], "--workers is 0"),
        (["--margin-tokens", "0"], "margin_tokens is 0"),
        (["--margin-window", "some"], "--margin-window is 'some'"),
        (["--format", "squad"], "name it with --data"),
        (["--data", "x.json"], "leave out --tasks"),
        (["--patterns", "llm,rag", "--keep-repeats"], "leave them out"),
        (["--text", "nowhere"], "is not a folder"),
        (["--text", "x" * 5000], "is not a folder"),
        (["--model", "./nowhere"], "no folder"),
    ],
)
def test_bad_options_give_one_sentence(wrong, said, folder, tmp_path, capsys):
    assert evaluate.main(arguments(folder, tmp_path / "out", *wrong)) == 2
    assert not (tmp_path / "out").exists() or said in ("needs", "lower --margin-tokens")  # told by the plan of a document
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error and error.startswith("error: ")


WHOLE_MARGIN = {
    "text": "",
    "word_for_word": None,
    "relevant": True,
    "probability": 1,
    "gold": None,
    "verdict_right": None,
}


@pytest.mark.parametrize(
    "changes",
    [
        {"task": []},
        {"document": "0"},
        {"document": None},
        {"scores": None},
        {"scores": {}},
        {"scores": {"score": "1"}},
        {"scores": {"score": float("nan")}},
        {"scores": {"score": True}},
        {"scores": {"score": 1.0, "token_f1": "1"}},
        {"measure": 1},
        {"evidence": "2"},
        {"margins": 1},
        {"margins": [{"gold": "A."}]},
        {"margins": [WHOLE_MARGIN | {"text": None}]},
        {"margins": [WHOLE_MARGIN | {"probability": "high"}]},
        {"chunks": [1]},
    ],
    ids=str,
)
def test_a_damaged_line_is_named(tmp_path, changes):
    results = Results(tmp_path, {"a": 1}, {})
    results.add(record("listing", 0, "wim", 1.0, margins=[WHOLE_MARGIN]))
    assert len(Results(tmp_path, {"a": 1}, {}).records) == 1
    with results.file.open("a") as file:
        file.write(json.dumps(record("listing", 1, "wim", 1.0) | changes) + "\n")
    with pytest.raises(InputError, match="line 2: this is no answer"):
        Results(tmp_path, {"a": 1}, {})


@pytest.mark.parametrize("line", ["{}", "7", "[" * 100_000, '{"task": "listing", "length": 10'], ids=lambda line: line[:9])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    results = Results(tmp_path, {"a": 1}, {})
    results.file.write_text(line + "\n")
    with pytest.raises(InputError, match="line 1"):
        Results(tmp_path, {"a": 1}, {})


@pytest.mark.parametrize("settings", ["", "[]", '{"settings": []}', '{"settings": 1}', "[" * 100_000])
def test_damaged_settings_are_told(tmp_path, settings):
    Results(tmp_path, {"a": 1}, {}).file.write_text("")
    (tmp_path / "settings.json").write_text(settings)
    with pytest.raises(InputError, match="settings.json is damaged"):
        Results(tmp_path, {"a": 1}, {})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_is_told(tmp_path):
    results = Results(tmp_path, {"a": 1}, {})
    results.file.symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"answers.jsonl cannot be written \(No space left"):
        results.add(record("listing", 0, "wim", 1.0))
    assert not results.records


def test_answers_without_settings_are_refused(tmp_path):
    (tmp_path / "answers.jsonl").write_text("")
    with pytest.raises(InputError, match="no settings.json"):
        Results(tmp_path, {"a": 1}, {})


# Files ----------------------------------------------------------------------------------------------------------------


def test_questions_of_a_file_share_their_document(folder, tmp_path, capsys):
    def squad(context: str, *words: str) -> dict:
        answers = [[{"text": word, "answer_start": context.index(word)}] for word in words]
        qas = [{"question": f"Where is {word}?", "answers": answer} for word, answer in zip(words, answers, strict=True)]
        return {"paragraphs": [{"context": context, "qas": qas}]}

    text = "Mary went to the garden. John picked up the football. " * 10
    articles = [
        squad(text, "Mary", "garden", "football"),
        squad("word " * 3000, "word"),
        squad("It is here. " + text, "here"),
    ]
    (tmp_path / "data.json").write_text(json.dumps({"data": articles}))
    options = ["--data", str(tmp_path / "data.json"), "--questions", "2", "--documents", "5", "--patterns", "wim,llm"]
    budgets = "--margins written --chunk-tokens 128 --margin-tokens 4 --answer-tokens 4 --device cpu".split()
    assert evaluate.main(["--model", folder, "--out", str(tmp_path / "out"), *options, *budgets]) == 0
    captured = capsys.readouterr()
    assert "since they do not fit: 1. The first" in captured.err
    row = next(line for line in captured.out.splitlines() if line.startswith("| squad"))
    assert [column.strip() for column in row.split("|")[2:4]] == ["own", "2"]
    records = read(tmp_path / "out")
    assert [(r["document"], r["question"]) for r in records if r["pattern"] == "wim"] == [(0, 0), (0, 1), (2, 0)]
    assert sum(record["tokens"].get("document", 0) > 0 for record in records) == 2


def squad_file(path: Path, questions: list[str], text: str = "Mary went to the garden. " * 20) -> list[str]:
    """The options that read a file of one article for each question."""
    contexts = [f"{number} {text}" for number in range(len(questions))]
    answers = [{"text": "Mary", "answer_start": 2}]
    paragraphs = [
        {"context": context, "qas": [{"question": question, "answers": answers}]}
        for context, question in zip(contexts, questions, strict=True)
    ]
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    budgets = "--patterns llm --chunk-tokens 128 --margin-tokens 4 --answer-tokens 4 --device cpu"
    return ["--data", str(path), *budgets.split()]


@pytest.mark.parametrize("length", [[], ["--lengths", "600"]])
def test_a_question_that_does_not_fit_is_left_out_at_any_length(folder, tmp_path, capsys, length):
    options = squad_file(tmp_path / "data.json", ["Who?", "Who went?", "Who" + " went" * 2000, "And who?"])
    assert evaluate.main(["--model", folder, "--out", str(tmp_path / "out"), *options, *length]) == 0
    assert "Documents left out, since they do not fit: 1. The first: The document has" in capsys.readouterr().err
    assert [record["document"] for record in read(tmp_path / "out")] == [0, 1, 3]


def test_a_document_that_is_far_too_long_is_left_out_without_reading_all_of_it(folder, tmp_path, monkeypatch, capsys):
    lengths = []
    encode = Tokenizer.encode_with_offsets

    def counted(self, text, **more):
        lengths.append(len(text))
        return encode(self, text, **more)

    monkeypatch.setattr(Tokenizer, "encode_with_offsets", counted)
    records = [{"context": "It rained. " * n, "query": "What?", "target": "rain"} for n in (20, 200_000)]
    (tmp_path / "data.json").write_text(json.dumps(records))
    budgets = "--patterns llm --chunk-tokens 128 --answer-tokens 4 --device cpu".split()
    options = ["--model", folder, "--out", str(tmp_path / "out"), "--data", str(tmp_path / "data.json"), *budgets]
    assert evaluate.main(options) == 0
    captured = capsys.readouterr()
    assert "do not fit: 1. The first: The document has 2200000 characters" in captured.err
    assert max(lengths) < 20_000 and "|   token F1 | own    | 1 " in captured.out


def test_a_question_that_does_not_fit_the_classifier_is_left_out(folder, tmp_path, capsys):
    options = squad_file(tmp_path / "data.json", ["Who?", "Who" + " went" * 600])
    judge = write_checkpoint(tmp_path / "judge", "llama", max_position_embeddings=512)
    options += ["--classifier", str(judge), "--patterns", "wim", "--margins", "written"]
    assert evaluate.main(["--model", folder, "--out", str(tmp_path / "out"), *options]) == 0
    assert "The first: A verdict needs" in capsys.readouterr().err
    assert [record["document"] for record in read(tmp_path / "out")] == [0]


@pytest.mark.parametrize(
    "options, said",
    [
        (
            ["--patterns", "wim", "--margins", "written", "--pack", "--margin-window", "1", "--classifier", "none"],
            "--pack has the model judge its own",
        ),
        (["--system", "Be brief."], "refuses a conversation of system and user (none, please)"),
        (["--answer-tokens", "3000"], "No document fits; the first: The document has"),
        (["--answer-tokens", "3000", "--lengths", "600"], "No document fits; the first: The document has"),
        (["--lengths", "600,5"], "no question with passages that fits in 5 tokens"),
    ],
)
def test_a_refusal_of_a_file_says_its_reason(tmp_path, capsys, options, said):
    model = write_checkpoint(tmp_path / "model", "llama", max_position_embeddings=2048)
    refusal = "{%- if messages[0]['role'] == 'system' %}{{- raise_exception('none, please') }}{%- endif %}"
    change_json(model / "tokenizer_config.json", chat_template=refusal + LLAMA_TEMPLATE)
    given = squad_file(tmp_path / "data.json", ["Who?", "And who?"])
    assert evaluate.main(["--model", str(model), "--out", str(tmp_path / "out"), *given, *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and said in error
    assert not (tmp_path / "out" / "answers.jsonl").exists()


@pytest.mark.parametrize(
    "options, measured",
    [([], ("listing", "needles_values")), (["--tasks", "counting,common_words"], ("counting", "common_words"))],
)
def test_a_checkpoint_may_say_which_tasks_it_is_measured_with(folder, tmp_path, options, measured):
    shutil.copytree(folder, tmp_path / "model")
    write_json(tmp_path / "model" / "wim.json", {"tasks": ["listing", "needles_values"]})
    args = evaluate.parse_arguments(["--model", str(tmp_path / "model"), "--lengths", "560", *options])
    assert tuple(task for cell in evaluate.make_setup(args).cells for task in cell.tasks) == measured
    everything = evaluate.make_setup(evaluate.parse_arguments(["--model", folder, "--lengths", "560"])).cells
    assert tuple(task for cell in everything for task in cell.tasks) == tuple(TASKS)


@pytest.mark.parametrize("options, asked", [([], None), (["--compile"], True), (["--no-compile"], False)])
def test_whether_to_compile_is_chosen_from_the_work_ahead(folder, tmp_path, monkeypatch, options, asked):
    said = []
    monkeypatch.setattr(evaluate, "choose_compiled", lambda *given: said.append(given) or "chosen")
    monkeypatch.setattr("weights.device.check_compile", lambda *given: None)  # for CUDA only, and this is a CPU
    one = ["--tasks", "common_words,single_fact", "--lengths", "560,700", "--documents", "3", "--patterns", "llm"]
    setup = evaluate.make_setup(evaluate.parse_arguments(["--model", folder, "--answer-tokens", "20", *one, *options]))
    assert setup.compiled == "chosen"
    [(given, _, _, config, tokens_read, steps)] = said
    # two tasks on documents of their own, at two lengths; a quarter of the 20 tokens in each of the twelve answers
    assert (given, config, tokens_read, steps) == (asked, setup.checkpoint.config, 2 * 3 * (560 + 700), 12 * 20 / 4)


def test_a_task_that_there_is_not_is_refused_from_a_checkpoint_too(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "model")
    write_json(tmp_path / "model" / "wim.json", {"tasks": ["juggling"]})
    assert evaluate.main(["--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]) == 2
    assert "wim.json names 'juggling'; choose among single_fact" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(DEMOS))
def test_the_demos_name_tasks_that_there_are(name):
    assert {"single_fact", "two_facts", "listing", "counting"} <= set(Wishes.of(DEMOS[name]).tasks) <= set(TASKS)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_later_document_that_does_not_fit_is_refused_before_the_first(folder, tmp_path, capsys, workers):
    one = ["--tasks", "single_fact", "--lengths", "600", "--patterns", "llm", "--documents", "6", "--workers", workers]
    setup = evaluate.make_setup(evaluate.parse_arguments(arguments(folder, tmp_path, *one)))
    work = Work(setup.source, setup.cells, 6, {}, folder, None, 128)
    needed = [setup.plan(item).max_length for _, item in work() if item is not None]
    assert needed[0] < max(needed)
    answer_tokens = str(4 + 2048 - needed[0])  # the first just fits
    assert evaluate.main(arguments(folder, tmp_path, *one, "--answer-tokens", answer_tokens)) == 2
    assert "has 2048: shorten" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "answers.jsonl").exists()


@pytest.mark.parametrize(
    "file, option, said",
    [
        ("model.safetensors", "--model", "has no model.safetensors and no"),
        ("model.safetensors", "--classifier", "has no model.safetensors and no"),
        ("model.safetensors.index.json", "--model", "names 'gone.safetensors', which is not in the folder"),
        ("model.safetensors/", "--model", "model.safetensors is no file; check that the folder is a checkpoint"),
        ("books/b.txt/", "--text", "b.txt cannot be read (Is a directory)"),
        ("books/b.txt", "--text", "b.txt cannot be read (No such file"),
        ("corpus.json/", "--corpus", "corpus.json cannot be read (Is a directory)"),
        ("corpus.json", "--corpus", "corpus.json cannot be read (No such file"),
    ],
)
def test_files_that_cannot_be_read_give_one_sentence(folder, tmp_path, capsys, file, option, said):
    """`file`: what is absent (a link to nothing), an index of nothing, or, with a slash, a folder in its place."""
    model, path = write_checkpoint(tmp_path / "model", "llama", max_position_embeddings=2048), tmp_path / file
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("It rained. He came.")
    if file.startswith("model"):
        (model / "model.safetensors").unlink()
        path = model / file
    if file.endswith("/"):
        path.mkdir()
    elif file.endswith("index.json"):
        path.write_text('{"weight_map": {"a": "gone.safetensors"}}')
    elif file.endswith(".txt"):
        path.symlink_to(tmp_path / "gone")
    value = {"--text": tmp_path / "books", "--corpus": path}.get(option, model)
    more = squad_file(tmp_path / "data.json", ["Who?"]) if option == "--corpus" else ["--lengths", "560", "--device", "cpu"]
    assert evaluate.main(["--model", folder, "--out", str(tmp_path / "out"), *more, option, str(value)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and said in error


# Numbers --------------------------------------------------------------------------------------------------------------


def record(task: str, document: int, pattern: str, score: float, question: int = 0, **more: object) -> dict:
    key = {"task": task, "length": 1024, "document": document, "question": question, "pattern": pattern}
    return key | {"scores": {"score": score}} | more


def test_a_cell_of_right_and_wrong_answers_has_wilsons_interval():
    records = [record("single_fact", i, "llm", float(i < 30)) for i in range(40)]
    found = estimate(records, ("single_fact",), 1024, "llm")
    z, p, n = 1.959964, 0.75, 40
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    assert (found.mean, found.n) == (p, n)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half))
    assert found.percent() == "75 (60-86)"


def test_the_document_is_the_unit():
    """Two questions about document 0 count as much as one about document 1."""
    records = [record("squad", 0, "llm", 1.0), record("squad", 0, "llm", 0.0, question=1), record("squad", 1, "llm", 1.0)]
    assert estimate(records, ("squad",), 1024, "llm").mean == 0.75


def test_the_difference_is_paired_and_averaged_over_tasks():
    wim, llm = [1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]
    records = [record("two_facts", i, "wim", score) for i, score in enumerate(wim)]
    records += [record("two_facts", i, "llm", score) for i, score in enumerate(llm)]
    records += [record("listing", i, pattern, 0.5) for i in range(4) for pattern in ("wim", "llm")]
    one = difference(records, ("two_facts",), 1024, ("wim", "llm"))
    unseen = 1 - 0.025 ** (1 / 4)  # of four documents
    assert (one.mean, one.n, one.high) == (0.5, 4, 1.0) and one.low == pytest.approx(0.5 - 1.5 * unseen)
    both = difference(records, ("two_facts", "listing"), 1024, ("wim", "llm"))
    assert both.mean == 0.25 and (both.low, both.high) == pytest.approx((0.25 - 1.25 * unseen, 0.25 + 0.75 * unseen))

    table = ScoreTable([Cell(("two_facts", "listing"), 1024)], ["llm", "wim"])
    rows = table.rows(records, Cell(("two_facts", "listing"), 1024))
    assert [row.split("|")[1].strip() for row in rows] == ["two_facts", "listing", "mean of several"]
    assert rows[0].split("|")[2:4] == [" 1024   ", " 4   "]
    assert rows[0].split("|")[6].strip() == "+50.0 (-40..+100)"
    assert rows[2].split("|")[6].strip() == "+25.0 (-50..+70)"
    assert len({len(line) for line in [*table.header(), *rows]}) == 1


@pytest.mark.parametrize("wim, llm, mean", [(1.0, 0.0, 1.0), (0.0, 1.0, -1.0), (0.5, 0.5, 0.0)])
def test_a_few_equal_documents_are_no_certainty(wim, llm, mean):
    """And all of three patterns fits in 100 columns, the widest numbers too."""
    scores = {"wim": wim, "llm": llm, "rag": 1.0}
    few, many = (
        [record("needles_several", i, pattern, score) for i in range(n) for pattern, score in scores.items()]
        for n in (3, 300)
    )
    found = difference(few, ("needles_several",), 1024, ("wim", "llm"))
    assert found.mean == mean and found.high - found.low > 1
    sure = difference(many, ("needles_several",), 1024, ("wim", "llm"))
    assert sure.low <= mean <= sure.high and sure.high - sure.low < 0.05
    cell = Cell(("needles_several",), 1024)
    table = ScoreTable([cell], ["llm", "rag", "wim"])
    assert max(len(line) for records in (few, many) for line in [*table.header(), *table.rows(records, cell)]) <= 100


def test_the_table_shows_the_numbers_of_the_file(whole, folder, capsys):
    evaluate.main(arguments(folder, whole))
    lines = capsys.readouterr().out.splitlines()
    records = read(whole)
    row = next(line for line in lines if line.startswith("| listing") and "| 640 " in line)
    shown = [column.strip() for column in row.split("|")[1:-1]]
    for pattern, column in zip(("llm", "rag", "wim"), shown[3:6], strict=True):
        chosen = [r for r in records if (r["task"], r["length"], r["pattern"]) == ("listing", 640, pattern)]
        assert float(column.split()[0]) == pytest.approx(50 * sum(r["scores"]["score"] for r in chosen), abs=0.51)
    margins = [m for r in records if r["task"] == "listing" and r["length"] == 640 for m in r.get("margins", ())]
    without = [margin["word_for_word"] for margin in margins if margin["gold"] == "None."]
    row = [line for line in lines if line.startswith("| listing") and "| 640 " in line][1]
    assert f"({sum(without)}/{len(without)})" in row.split("|")[4]


def margin(gold: str | None, right: bool | None, probability: float, verdict: bool | None, **more: object) -> dict:
    return {"gold": gold, "word_for_word": right, "probability": probability, "verdict_right": verdict} | more


def test_margins_and_verdicts_are_counted():
    margins = [
        margin("A.", True, 0.9, True),
        margin("B.", False, 0.2, False),
        margin(NO_EVIDENCE, True, 0.1, True),
        margin(None, None, 0.1, None),
    ]
    records = [record("listing", 0, "wim", 1.0, margins=margins)]
    records += [record("listing", 0, "rag", 1.0, chunks=[{"verdict_right": True}, {"verdict_right": None}])]
    counts = count_right(records, "listing", 1024)
    assert counts == {"with": (1, 2), "without": (1, 1), "verdicts": (2, 3), "chunks": (1, 1)}
    row = right_table(records, [Cell(("listing",), 1024)])[-1]
    shown = ["listing", "1024", "50 (1/2)", "100 (1/1)", "67 (2/3)", "100 (1/1)"]
    assert [column.strip() for column in row.split("|")[1:-1]] == shown
    assert not note_table(records, [Cell(("listing",), 1024)])


def test_notes_that_help_are_told_from_those_that_do_not():
    useful = [("U", True, 0.9), ("V", False, 0.4), ("W", True, 0.6)]
    useless = [("X", True, 0.6), ("Y", False, 0.1)]
    margins = [
        margin("A.", False, p, True, text=text, relevant=kept, useful=group is useful)
        for group in (useful, useless)
        for text, kept, p in group
    ]
    margins.append(margin("A.", False, 1.0, True, text="None", relevant=True, useful=False))  # says nothing
    records = [record("plain", 0, "wim", 1.0, margins=margins, evidence=4, evidence_found=3)]
    counts = count_notes(records, "plain", 1024)
    assert counts.area == pytest.approx(4.5 / 6)  # of six pairs four are in order, and one is level
    row = note_table(records, [Cell(("plain",), 1024)])[-1]
    shown = ["plain", "1024", "75 (3/4)", "67 (2/3)", "50 (1/2)", "0.75"]
    assert [column.strip() for column in row.split("|")[1:-1]] == shown


def test_a_picture_is_drawn(whole, folder, tmp_path):
    pytest.importorskip("matplotlib")
    assert evaluate.main(arguments(folder, whole, "--plot", str(tmp_path / "picture.png"))) == 0
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert evaluate.main(arguments(folder, whole, "--plot", str(tmp_path / "picture.doc"))) == 2


# Parts ----------------------------------------------------------------------------------------------------------------


def test_a_family_of_tasks_shares_its_documents():
    cells = Source().cells(list(TASKS), [1024, 2048])
    assert [len(cell.tasks) for cell in cells] == [4, 4, 3, 3, 1, 1]
    assert Source().cells(["counting", "common_words"], [7]) == [Cell(("counting",), 7), Cell(("common_words",), 7)]


def test_documents_made_ahead_are_those_made_here(folder):
    cells = tuple(Source().cells(["two_facts", "needles_values"], [700]))
    work = Work(Source(questions=2), cells, 3, {cells[0]: frozenset({1})}, folder, None, 128)
    made = list(work())
    assert [item and item.number for _, item in made] == [0, 2, None, 0, 1, 2, None]
    assert all(len(item.questions(2)) == 2 for _, item in made if item)
    too_short = Cell(("two_facts",), 20)
    stream = ahead(replace(work, cells=(*cells, too_short)), n_ahead=2)
    assert list(islice(stream, len(made))) == made
    with pytest.raises(InputError, match="allow more tokens"):  # the other process's error is raised here
        next(stream)


def test_work_is_shared_evenly(folder):
    cells = tuple(Source().cells(["two_facts", "needles_values"], [600, 700]))
    work = Work(Source(), cells, 3, {cells[1]: frozenset({1})}, folder, None, 128)

    def left(work: Work) -> list[tuple[Cell, int]]:
        return [(cell, number) for cell in cells for number in range(3) if number not in work.skip.get(cell, ())]

    first, second = work.shares(2)
    assert sorted(left(first) + left(second), key=left(work).index) == left(work)
    for length in (600, 700):
        counts = [sum(cell.length == length for cell, _ in left(share)) for share in (first, second)]
        assert max(counts) - min(counts) <= 1
    assert left(work.shares(1)[0]) == left(work) and len(work.shares(100)) == len(left(work))


TEXT = "Mary went to the garden. It was the best of times, the worst of times.\n\n" * 16
QUERIES = ["Where is Mary?", "What was it?"]


def outcome(wim, query: str, pattern: str | None = None) -> tuple:
    *_, done = wim.ask(query, pattern)
    assert isinstance(done, Done)
    return done.answer, [(margin.text, margin.probability) for margin in done.margins], done.chunks_read


def test_patterns_can_share_a_document(folder):
    """Whatever was asked before, in whichever pattern, the answer is that of a reader of its own."""
    checkpoint = Checkpoint.open(folder)
    prompts, patterns = Prompts(), ("llm", "wim", "rag")
    alone = {}
    for pattern in patterns:
        settings = Settings(pattern=pattern, chunk_tokens=128, margin_tokens=4, answer_tokens=4, margin_window=None)
        for query in QUERIES:
            alone[pattern, query] = outcome(
                open_document(checkpoint, TEXT, QUERIES, settings, classifier=checkpoint, **CPU), query
            )
    plan = make_plan(checkpoint, TEXT, QUERIES, SETTINGS, prompts, checkpoint, patterns=patterns)
    wim = Reader(checkpoint, checkpoint, Sessions(**CPU)).open(plan)
    for pattern in ("llm", "wim", "rag", "llm", "rag", "wim", "wim"):
        for query in QUERIES:
            answer, margins, chunks_read = outcome(wim, query, pattern)
            assert (answer, chunks_read) == alone[pattern, query][::2]
            assert margins == [(text, pytest.approx(p, abs=1e-5)) for text, p in alone[pattern, query][1]]
    list(wim.judge_chunks(QUERIES))
    assert outcome(wim, QUERIES[1], "rag")[0] == alone["rag", QUERIES[1]][0]
    next(wim.judge_chunks(QUERIES))  # left in the middle
    assert outcome(wim, QUERIES[0], "llm")[0] == alone["llm", QUERIES[0]][0]


def test_a_reader_loads_once_and_keeps_a_cache_that_is_large_enough(folder, monkeypatch):
    checkpoint = Checkpoint.open(folder)
    loads = []
    load_model = Checkpoint.load_model
    monkeypatch.setattr(Checkpoint, "load_model", lambda self, *a, **k: loads.append(1) or load_model(self, *a, **k))
    reader = Reader(checkpoint, checkpoint, Sessions(**CPU))

    def read_text(text: str):
        return reader.open(make_plan(checkpoint, text, QUERIES, SETTINGS, Prompts(), checkpoint))

    first = read_text(TEXT)
    before = outcome(first, QUERIES[0])
    second = read_text(TEXT[:400])
    assert second.session is first.session and second.session.length == 0
    larger = read_text(TEXT * 2)
    assert larger.session.cache.capacity > larger.plan.capacity > first.plan.capacity
    assert outcome(read_text(TEXT), QUERIES[0]) == before
    assert len(loads) == 1


def test_longrope_has_two_rotations():
    class Rope:
        rope_type, original_max_position_embeddings = "longrope", 4096

    class Config:
        rope = Rope

    assert same_rotation(Config, 10, 4096) and same_rotation(Config, 5000, 9000)
    assert not same_rotation(Config, 4096, 4097)
    Rope.rope_type = "default"
    assert same_rotation(Config, 4096, 4097)
