"""scripts/generate.py: the answer on stdout, everything else on stderr, and a sentence for whatever cannot be used."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from cli.options import exit_code
from cli.terminal import Terminal, looked, verdict
from cli.weights_bar import WeightsBar
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from screen import shown
from weights_helpers import write_json
from wim_helpers import QUERY, SMALL_RUN, document, write_reader

from model import InputError
from scripts import generate
from weights import Checkpoint, Tokenizer
from wim.budget import make_plan
from wim.events import AnswerToken, ChunkJudged, ChunkRead, Done, Margin, MarginDone, MarginToken, Noted, Rollback
from wim.settings import Settings

SMALL = ["--margins", "written", *SMALL_RUN]


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty-cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model, a document, and all that can be wrong with files, by name."""
    folder = tmp_path_factory.mktemp("files")
    write_reader(folder / "model", "llama")
    write_reader(folder / "other", "qwen2", seed=1)
    (folder / "context.txt").write_text(document(12), encoding="utf-8")
    (folder / "long.txt").write_text(document(600), encoding="utf-8")
    (folder / "empty.txt").write_text(" \n")
    (folder / "binary.txt").write_bytes(b"\x80\x81\xff\x00")
    (folder / "binary").mkdir()
    (folder / "binary" / "file").write_bytes(b"\0")
    write_json(folder / "example.json", {"context": document(12), "query": QUERY, "target": "garden", "more": 1})
    write_json(folder / "no-query.json", {"context": "Mary went home."})
    write_json(folder / "number.json", {"context": "Mary went home.", "query": 4})
    write_json(folder / "list.json", ["context", "query"])
    (folder / "broken.json").write_text('{"context": ')
    write_json(folder / "unknown-name.json", {"margins": "{query}"})
    write_json(folder / "no-placeholder.json", {"answer": "Tell me."})

    def not_numbers(path):
        tensors = load_file(path / "model.safetensors")
        tensors["model.norm.weight"][0] = float("nan")
        save_file(tensors, path / "model.safetensors")

    def damaged(name, change):
        write_reader(folder / name, "llama")
        change(folder / name)

    config = json.loads((folder / "model" / "config.json").read_text())
    damaged("gpt2", lambda path: write_json(path / "config.json", config | {"architectures": ["GPT2LMHeadModel"]}))
    damaged("no-weights", lambda path: (path / "model.safetensors").unlink())
    damaged("pickle", lambda path: (path / "model.safetensors").rename(path / "pytorch_model.bin"))
    damaged("no-tokenizer", lambda path: (path / "tokenizer.json").unlink())
    damaged("not-numbers", not_numbers)
    damaged("no-template", lambda path: write_json(path / "tokenizer_config.json", {}))
    return folder


def arguments(files, *changes, model="model", context="context.txt", query=QUERY):
    found = ["--model", str(files / model), *SMALL]
    if context is not None:
        found += ["--context", context if context == "-" else str(files / context), "--query", query]
    return [*found, *(str(files / change[1:]) if change.startswith("@") else change for change in changes)]


def run(capsys, arguments):
    """Exit code, stdout and stderr of the script."""
    try:
        code = generate.main(arguments)
    except SystemExit as exit:  # argparse
        code = exit.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def run_json(capsys, arguments):
    """The object; and what is in its result, too, where there is just one."""
    code, out, err = run(capsys, [*arguments, "--json"])
    assert code == 0, err
    found = json.loads(out)
    return found if len(found["results"]) > 1 else found | found["results"][0]


# What it prints -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["wim", "llm", "rag"])
def test_the_answer_is_on_stdout_and_everything_else_on_stderr(files, capsys, pattern):
    code, out, err = run(capsys, arguments(files, "--pattern", pattern))
    expected = run_json(capsys, arguments(files, "--pattern", pattern))
    assert code == 0 and out.strip() == expected["answer"]
    line = r"^\[chunks? [\d-]+ · context.txt:\d+(?:-\d+)?\] .*(✓ relevant|✗ not relevant) \((?:at most )?\d\.\d\d\)$"
    marks = len(re.findall(line, err, re.MULTILINE))
    n_chunks = len(re.findall(r"^\[chunk", err, re.MULTILINE))
    assert marks == n_chunks and (n_chunks > 0) == (pattern != "llm")
    summary = err.strip().splitlines()[-1]
    if pattern != "rag":
        assert f"document: {expected['document_tokens']} tokens read in " in summary
    assert re.search(rf"answer: {expected['tokens']['answer']} tokens? written in ", summary)


def test_json_is_one_object_with_everything(files, capsys):
    code, out, err = run(capsys, arguments(files, "--seed", "5", "--json"))
    assert code == 0 and len(re.findall(r"^\[chunk", err, re.MULTILINE)) > 1  # progress is told there as ever
    found = json.loads(out)
    assert set(found) >= {"peak_device_bytes", "model", "settings"}
    [result] = found["results"]  # as for several questions
    assert not set(result) & set(found) and set(result) >= {"answer", "query", "margins", "tokens", "seconds"}
    found |= result
    assert found["query"] == QUERY and found["model"] == str(files / "model") and found["target"] is None
    assert (found["device"], found["dtype"], found["classifier"]) == ("cpu", "float32", "same")
    assert found["settings"]["chunk_tokens"] == 60 and found["settings"]["seed"] == 5
    assert set(found["tokens"]) == {"document", "margins", "verdicts", "final_prompt", "answer"}
    assert set(found["seconds"]) == {"prefill", "margins", "verdicts", "answer"}
    margins = found["margins"]
    assert len(margins) == found["chunks_read"] > 1
    assert (margins[0]["start"], margins[-1]["end"]) == (0, found["document_tokens"])
    for index, margin in enumerate(margins):
        assert set(margin) == {"chunk", "start", "end", "text", "relevant", "probability", "score", "sources"}
        assert margin["chunk"] == index and 0 < margin["probability"] < 1
        assert [source["file"] for source in margin["sources"]] == [str(files / "context.txt")]


def test_int8_weights_are_said_and_used(files, capsys, monkeypatch):
    opened, load = [], Checkpoint.load_model
    monkeypatch.setattr(Checkpoint, "load_model", lambda *args: opened.append(load(*args)) or opened[-1])
    code, out, err = run(capsys, arguments(files, "--weights", "int8"))
    assert code == 0 and " on cpu, float32 with int8 weights\n" in err
    found = run_json(capsys, arguments(files, "--weights", "int8"))
    assert (found["weights"], found["dtype"], found["answer"]) == ("int8", "float32", out.strip())
    assert all(any(weight.dtype == torch.int8 for weight in model.parameters()) for model in opened) and len(opened) == 2
    code, out, err = run(capsys, arguments(files, "--weights", "int4"))
    assert (code, out) == (2, "") and err.startswith("error: argument --weights: invalid choice: 'int4'")


def test_several_questions_share_the_document(files, capsys):
    other = "What did John pick up?"
    found = run_json(capsys, arguments(files, "--query", other))
    first, second = found["results"]
    assert (first["query"], second["query"]) == (QUERY, other)
    assert first["tokens"]["document"] == found["document_tokens"] and second["tokens"]["document"] == 0
    alone = run_json(capsys, arguments(files, query=other))
    assert second["answer"] == alone["answer"]
    code, out, err = run(capsys, arguments(files, "--query", other))
    assert code == 0 and out.split("\n")[0].strip() == first["answer"].split("\n")[0] and other in err


def test_a_question_of_several_lines_is_told_on_one(files, capsys):
    code, _, err = run(capsys, arguments(files, query="Where\r\nis\tMary?"))
    assert code == 0 and "\nquestion: Where is Mary?\n" in err


@pytest.mark.parametrize("option", ["--query", "--context"])
def test_a_value_that_begins_with_a_dash_is_told_how_to_be_given(files, capsys, option):
    code, out, err = run(capsys, arguments(files, option, "-x"))
    assert (code, out) == (2, "") and "begins with a dash is joined to it" in err


def test_windows_and_packing_change_nothing_but_the_time(files, capsys):
    expected = run_json(capsys, arguments(files))
    for changes in (["--margin-window", "all"], ["--margin-window", "2"], ["--pack"]):
        found = run_json(capsys, arguments(files, *changes))
        assert found["answer"] == expected["answer"] and found["tokens"] == expected["tokens"]
        assert [m["text"] for m in found["margins"]] == [m["text"] for m in expected["margins"]]


def test_an_example_brings_its_document_question_and_target(files, capsys):
    found = run_json(capsys, arguments(files, "--example", "@example.json", context=None))
    expected = run_json(capsys, arguments(files))
    assert found["target"] == "garden" and found["answer"] == expected["answer"]
    code, out, err = run(capsys, arguments(files, "--example", "@example.json", context=None))
    assert code == 0 and "target: garden" in err and "garden" not in out


def test_a_document_can_come_from_stdin(files, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((files / "context.txt").read_bytes())))
    found = run_json(capsys, arguments(files, context="-"))
    assert found["answer"] == run_json(capsys, arguments(files))["answer"]


def test_a_piped_document_is_read_without_being_named(files, capsys, monkeypatch):
    for query in (["--query", QUERY], []):
        with (files / "context.txt").open(encoding="utf-8") as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            code, out, err = run(capsys, arguments(files, *query, context=None))
        if query:
            assert code == 0 and out.strip() == run_json(capsys, arguments(files))["answer"]
            assert err.startswith("document: stdin, ")
        else:
            assert (code, out) == (2, "") and "needs a question" in err


@pytest.mark.parametrize("is_demo", [True, False])
def test_a_demo_with_a_text_of_ones_own_says_what_it_is(files, capsys, monkeypatch, is_demo):
    monkeypatch.setattr(generate, "DEMOS", {"tiny": files / "model"} if is_demo else {})
    _, _, err = run(capsys, arguments(files))
    assert ("This is a demo" in err) == is_demo


def test_several_documents_are_all_read(files, capsys):
    code, _, err = run(capsys, arguments(files, "--context", "@example.json", "@list.json"))
    alone = run_json(capsys, arguments(files))["document_tokens"]
    said = re.match(r"document: .*context.txt, .*, .*list.json \(3 files\), ([\d,]+) tokens, (\d+) chunks · ", err)
    assert code == 0 and int(said[1].replace(",", "")) > 2 * alone
    assert int(said[2]) == len(re.findall(r"^\[chunk", err, re.MULTILINE))


@pytest.mark.parametrize("classifier", ["none", "@other"])
def test_who_judges(files, capsys, classifier):
    found = run_json(capsys, arguments(files, "--classifier", classifier))
    probabilities = [margin["probability"] for margin in found["margins"]]
    own = [margin["probability"] for margin in run_json(capsys, arguments(files))["margins"]]
    assert probabilities != own
    assert (probabilities[0] is None) == (classifier == "none")


def test_half_characters_are_no_reason_to_fail(files, capsys):
    """As they come from the shell, or from an escape in JSON."""
    found = run_json(capsys, arguments(files, query="Where is \udcff?"))
    assert found["query"] == "Where is ??"


def test_wording_from_a_file(files, capsys, tmp_path):
    write_json(tmp_path / "prompts.json", {"answer": "\n{query} Just say it!"})
    plain = run_json(capsys, arguments(files, "--pattern", "llm"))
    found = run_json(capsys, arguments(files, "--pattern", "llm", "--prompts", str(tmp_path / "prompts.json")))
    assert found["tokens"]["final_prompt"] < plain["tokens"]["final_prompt"]


def test_without_arguments_the_demo_reads_its_document(capsys, monkeypatch, tmp_path):
    """The whole document takes too long here: its first paragraphs."""
    text = generate.DEMO_DOCUMENT.read_text(encoding="utf-8")
    tokenizer = Checkpoint.open("demo-llama").tokenizer
    assert len(tokenizer.encode(text)) >= 3000
    (tmp_path / "demo.txt").write_text(text[:2000], encoding="utf-8")
    monkeypatch.setattr(generate, "DEMO_DOCUMENT", tmp_path / "demo.txt")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, out, err = run(capsys, [])
    assert (
        code == 0
        and out.strip()
        and re.search(r"^\[chunks? 1(-\d)? · demo.txt:1-", err, re.MULTILINE)
        and "Traceback" not in err
    )


def test_the_first_lines_say_what_is_read_and_asked(files, capsys, monkeypatch):
    """Above the bar: nothing tears them."""
    n_tokens = run_json(capsys, arguments(files))["document_tokens"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, _, err = run(capsys, arguments(files))
    first, second, *_ = (
        line.rpartition("\x1b[K")[2] for line in err.split("\n") if "document: " in line or "question: " in line
    )
    assert re.fullmatch(rf"document: .*context.txt, {n_tokens} tokens, \d+ chunks · .*model on cpu, float32", first)
    assert second == f"question: {QUERY}" and err.index(second) < err.index("reading")
    assert (
        err.index("opening the checkpoint …") < err.index("cutting the document") < err.index("weights:") < err.index(first)
    )


# Ctrl-C -------------------------------------------------------------------------------------------------------------------


def interrupt_at(monkeypatch, *wanted):
    """Ctrl-C as each of these kinds of event is first shown."""
    kinds, show = list(wanted), Terminal.show

    def interrupted(self, event):
        show(self, event)
        if kinds and isinstance(event, kinds[0]):
            kinds.pop(0)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Terminal, "show", interrupted)


def test_ctrl_c_answers_from_what_was_read(files, capsys, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    interrupt_at(monkeypatch, ChunkRead)
    code, out, err = run(capsys, arguments(files))
    assert code == 0 and out.strip()
    assert len(re.findall(r"^\[chunk", err, re.MULTILINE)) == 1
    assert "Reading stops after this chunk, and the answer follows. Ctrl-C again quits.\n" in err
    assert re.search(r"^answered after 1 of 2 chunks · document: ", err, re.MULTILINE)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("kind", [Noted, AnswerToken], ids=["before", "within"])
def test_ctrl_c_where_nothing_is_read_any_more(files, capsys, monkeypatch, kind):
    """Before the answer it says so; within, it quits."""
    interrupt_at(monkeypatch, kind)
    code, out, err = run(capsys, arguments(files))
    said = "The document is read, and the answer follows. Ctrl-C again quits." in err
    assert (code, said) == ((0, True) if kind is Noted else (130, False)) and "answered after" not in err


def test_ctrl_c_tears_no_line(files, capsys, monkeypatch):
    """In the middle of a margin: what there is to say comes behind it."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    interrupt_at(monkeypatch, MarginToken)
    code, _, err = run(capsys, arguments(files))
    weights, document, question, margin, said, end, last = shown(err)
    assert margin.startswith("[chunk 1 · ") and re.search(r" cache \d+ -> \d+$", margin)
    assert said.startswith("Reading stops after") and end.startswith("answered after 1 of 2 chunks") and last == ""


@pytest.mark.parametrize("kinds", [(ChunkRead, MarginToken), (AnswerToken,)], ids=["twice", "answering"])
def test_ctrl_c_quits_the_second_time_or_while_answering(files, capsys, monkeypatch, kinds):
    before = signal.getsignal(signal.SIGINT)
    interrupt_at(monkeypatch, *kinds)
    code, _, err = run(capsys, arguments(files))
    assert code == 130 and err.rstrip().endswith("Interrupted.") and "Traceback" not in err
    assert signal.getsignal(signal.SIGINT) is before


# What cannot be used ------------------------------------------------------------------------------------------------------

BAD = {
    "missing file": ({"context": "absent.txt"}, [], "absent.txt cannot be read"),
    "folder without text": ({"context": "binary"}, [], "has no text files"),
    "binary file": ({"context": "binary.txt"}, [], "not UTF-8 text (byte 0)"),
    "empty document": ({"context": "empty.txt"}, [], "document is empty"),
    "no name": ({}, ["--context", ""], "--context is empty"),
    "unset variable": ({}, ["--prompts="], "--prompts is empty"),
    "empty question": ({"query": " "}, [], "question is empty"),
    "no question": ({"context": None}, ["--context", "@context.txt"], "needs a question"),
    "example and question": ({}, ["--example", "@example.json"], "leave out --context and --query"),
    "bad JSON": ({"context": None}, ["--example", "@broken.json"], "is not JSON"),
    "missing field": ({"context": None}, ["--example", "@no-query.json"], "no text under 'query'"),
    "field of another type": ({"context": None}, ["--example", "@number.json"], "no text under 'query'"),
    "no object": ({"context": None}, ["--example", "@list.json"], "no text under 'context'"),
    "missing example": ({"context": None}, ["--example", "@absent.json"], "absent.json cannot be read"),
    "unknown prompt": ({}, ["--prompts", "@unknown-name.json"], "'margins'"),
    "prompt without placeholder": ({}, ["--prompts", "@no-placeholder.json"], "placeholders {query}"),
    "missing prompts": ({}, ["--prompts", "@absent.json"], "absent.json cannot be read"),
    "no chunk": ({}, ["--chunk-tokens", "0"], "chunk_tokens is 0"),
    "no margin": ({}, ["--margin-tokens", "0"], "margin_tokens is 0"),
    "no answer": ({}, ["--answer-tokens", "-3"], "answer_tokens is -3"),
    "no window": ({}, ["--margin-window", "0"], "--margin-window is '0'"),
    "nothing to pack": ({}, ["--pattern", "llm", "--pack"], "pattern is llm; it should be wim with --pack"),
    "packed underlines": ({}, ["--margins", "underlined", "--pack"], "margins is underlined; it should be written or both"),
    "packed window": ({}, ["--pack", "--margin-window", "3"], "margin_window is 3; it should be 1 with --pack"),
    "judged underlines": ({}, ["--margins", "underlined", "--threshold", "0.5"], "--threshold is about written margins"),
    "repeated underlines": ({}, ["--margins", "underlined", "--keep-repeats"], "--keep-repeats is about written margins"),
    "window of underlines": ({}, ["--margins", "underlined", "--margin-window", "all"], "--margin-window is about written"),
    "no document, no question": ({"context": None}, ["--context", "@absent.txt"], "absent.txt cannot be read"),
    "binary document": ({"context": "binary/file"}, [], "file is binary (it holds zero bytes); convert it to text first"),
    "nothing that repeats": (
        {},
        ["--pattern", "rag", "--keep-repeats"],
        "pattern is rag; it should be wim with --keep-repeats",
    ),
    "person and JSON": ({}, ["--interactive", "--json"], "leave it out, and /save writes the same"),
    "person and rag": ({}, ["--interactive", "--pattern", "rag"], "--pattern rag reads it anew"),
    "nothing to review": ({}, ["--review", "--pattern", "llm"], "--pattern llm has none"),
    "cold": ({}, ["--temperature", "-1"], "temperature is -1"),
    "no nucleus": ({}, ["--top-p", "0"], "top_p is 0"),
    "threshold": ({}, ["--threshold", "2"], "threshold is 2"),
    "seed": ({}, ["--temperature", "1", "--seed", str(2**70)], f"seed is {2**70}"),
    "unknown device": ({}, ["--device", "abacus"], "'abacus' is not there"),
    "absent device": ({}, ["--device", "cuda:99"], "'cuda:99' is not there"),
    "compiled on a CPU": ({}, ["--compile"], "--compile is for CUDA, and the device is cpu"),
    "unknown dtype": ({}, ["--dtype", "int3"], "'int3' is unknown"),
    "unknown architecture": ({"model": "gpt2"}, [], "'GPT2LMHeadModel' is not supported"),
    "no weights": ({"model": "no-weights"}, [], "has no model.safetensors"),
    "pickle": ({"model": "pickle"}, [], "pytorch_model.bin, a pickle"),
    "no tokenizer": ({"model": "no-tokenizer"}, [], "neither tokenizer.json nor tokenizer.model"),
    "no template": ({"model": "no-template"}, [], "no chat template"),
    "no checkpoint": ({"model": "."}, [], "no config.json"),
    "no folder": ({"model": "absent"}, [], "no folder"),
    "no classifier": ({}, ["--classifier", "./absent"], "no folder './absent'"),
    "too long a document": ({"context": "long.txt"}, [], "has 2048: shorten the document by"),
    "malformed hub id": ({}, ["--model", "a/b/c"], "no folder 'a/b/c'"),
    "invalid hub id": ({}, ["--model", "owner/na me"], "'owner/na me'"),
    "hub id without a network": ({}, ["--model", "owner/name"], "connect to the network"),
    "revision of a folder": ({}, ["--revision", "v1"], "revision ('v1') was given for the local folder"),
}


@pytest.mark.parametrize("options, changes, words", BAD.values(), ids=BAD)
def test_bad_input_gets_one_sentence_and_exit_code_2(files, capsys, options, changes, words):
    code, out, err = run(capsys, arguments(files, *changes, **options))
    assert code == 2 and out == ""
    assert words in err
    [line] = err.splitlines()  # one, and no traceback
    assert line.startswith("error: ") and line.endswith(".")


@pytest.mark.parametrize("changes", [["--pattern", "llm"], ["--margin-window", "all"], ["--pattern", "rag"], ["--pack"]])
def test_weights_that_are_no_numbers_give_no_answer(files, capsys, changes):
    code, out, err = run(capsys, arguments(files, *changes, model="not-numbers"))
    assert (code, out) == (2, "") and "NaN or infinity" in err.splitlines()[-1]


@pytest.mark.parametrize(
    "changes",
    [["--pattern", "fast"], ["--chunk-tokens", "many"], ["--margin-window", "some"], ["--top-p", "x"], ["--bogus"]],
    ids=" ".join,
)
def test_arguments_that_cannot_be_read_get_exit_code_2(files, capsys, changes):
    code, out, err = run(capsys, arguments(files, *changes))
    assert code == 2 and out == ""
    assert "error: " in err.splitlines()[-1] and changes[0] in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize("wish", ["written", "underlined"])
def test_what_goes_together_depends_on_the_checkpoints_wishes(files, capsys, tmp_path, monkeypatch, wish):
    """They are known once its wim.json is read, and no weights are read before."""
    model = write_reader(tmp_path / "model", "llama")
    write_json(model / "wim.json", {"margins": wish, "chunk_tokens": 60, "margin_tokens": 8, "answer_tokens": 7})
    if wish == "underlined":
        monkeypatch.setattr("weights.checkpoint.load_weights", None)
    given = ["--model", str(model), "--context", str(files / "context.txt"), "--query", QUERY, "--device", "cpu", "--pack"]
    code, out, err = run(capsys, given)
    assert (code, bool(out)) == ((0, True) if wish == "written" else (2, False))
    assert ("margins is underlined; it should be written or both with --pack" in err) == (wish == "underlined")


@pytest.mark.parametrize("kind", ["underlined", "both"])
def test_underlines_are_not_shown_as_probabilities(files, capsys, kind):
    """A line tells how much a sentence was looked at beside the others; the last one, what the looking took."""
    code, _, err = run(capsys, arguments(files, "--margins", kind))
    lines = [line for line in err.splitlines() if line.startswith("[chunk")]
    shares = [line for line in lines if re.search(r"  [✓✗] looked at (most|\(0\.\d\d of the most\))$", line)]
    assert code == 0 and len(shares) > 1 and sum(line.endswith("✓ looked at most") for line in shares) == 1
    assert any("relevant" in line or "nothing" in line for line in lines) == (kind == "both")
    wanted = r" · underlines: looked in \d" if kind == "underlined" else r"written, and underlines looked for, in \d"
    assert re.search(wanted, err.splitlines()[-1])


def test_bad_input_is_found_before_weights_are_read(files, capsys, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("weights were read")

    monkeypatch.setattr("weights.checkpoint.load_weights", refuse)
    for name in ("empty document", "too long a document", "unknown dtype", "prompt without placeholder", "no classifier"):
        options, changes, _ = BAD[name]
        assert run(capsys, arguments(files, *changes, **options))[0] == 2, name


def test_a_document_that_is_far_too_long_is_refused_without_reading_all_of_it(files, capsys, monkeypatch, tmp_path):
    lengths = []
    encode = Tokenizer.encode
    monkeypatch.setattr(
        Tokenizer, "encode", lambda self, text, **more: lengths.append(len(text)) or encode(self, text, **more)
    )
    (tmp_path / "huge.txt").write_text("Mary went to the garden. " * 400_000)
    code, out, err = run(capsys, arguments(files, context=str(tmp_path / "huge.txt")))
    assert (code, out) == (2, "") and "10000000 characters" in err and "has 2048 positions: shorten it" in err
    assert max(lengths) < 100_000


# How a script ends --------------------------------------------------------------------------------------------------------


def fail(error):
    def work():
        print("progress", file=sys.stderr)
        raise error

    return work


@pytest.mark.parametrize(
    "work, code",
    [
        (lambda: print("progress", file=sys.stderr), 0),
        (fail(InputError("No.")), 2),
        (fail(OSError(28, "No space left on device")), 2),
        (fail(KeyboardInterrupt()), 130),
    ],
)
def test_a_stderr_that_takes_nothing_changes_no_exit_code(work, code, monkeypatch):
    with open("/dev/full", "w", buffering=1, encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert exit_code(work) == code
        assert sys.stderr is full


def test_ctrl_c_within_the_last_words(monkeypatch):
    class Interrupting(io.StringIO):
        def write(self, text):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stderr", Interrupting())
    assert exit_code(fail(InputError("No."))) == 130


@pytest.mark.parametrize(
    "when, code",
    [
        ("import cli.start; os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", 130),
        (
            "from cli.options import exit_code; from cli.start import loading_libraries\n"
            "def work():\n  with loading_libraries(): os.kill(os.getpid(), signal.SIGINT); time.sleep(9)\n"
            "exit_code(work)",
            130,
        ),
        (
            "from cli.options import exit_code; code = exit_code(lambda: print('answer'));"
            "os.kill(os.getpid(), signal.SIGINT); sys.exit(code)",
            0,
        ),
    ],
    ids=["starting", "importing", "answered"],
)
def test_ctrl_c_before_and_after_the_work_gives_no_traceback(when, code):
    scripts = generate.DEMO_DOCUMENT.parent
    begin = f"import os, signal, sys, time; __file__ = 'generate.py'; sys.path.insert(0, {str(scripts)!r}); "
    begin += f"sys.argv = [{str(scripts / 'generate.py')!r}]; "
    begin += "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT]); "  # whatever the tests' own process does with it
    begin += "signal.signal(signal.SIGINT, signal.default_int_handler); "
    done = subprocess.run([sys.executable, "-c", begin + when], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout == ("answer\n" if code == 0 else "")


@pytest.mark.parametrize("options", [["--threshold", "x" * 5000], ["--seed", "9" * 5000], ["--" + "x\n" * 3000]])
def test_a_long_argument_gets_a_short_sentence(capsys, options):
    code, out, err = run(capsys, options)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: ") and len(err) < 700


NO_TORCH = """
import sys
from types import SimpleNamespace
from scripts import benchmark, evaluate, generate, train_demo
for script, options in (
    *((script, [option]) for script in (benchmark, evaluate, generate) for option in ("--help", "--version", "--bogus")),
    *((generate, [option, "absent"]) for option in ("--model", "--example", "--prompts", "--classifier")),
    *((evaluate, [option, "absent"]) for option in ("--model", "--data", "--text")),
    (generate, ["--context", "absent", "--query", "?"]),
    (generate, ["--temperature", "-1"]),
    *((SimpleNamespace(main=train_demo.arguments), [option]) for option in ("--help", "--version", "--bogus")),
):
    try:
        code = script.main(options)
    except SystemExit as exit:
        code = exit.code
    assert code == (0 if options[0] in ("--help", "--version") else 2), options
    assert "torch" not in sys.modules, options
"""


def test_what_needs_no_model_does_not_wait_for_torch():
    root = generate.DEMO_DOCUMENT.parents[1]
    paths = os.pathsep.join((str(root), str(root / "scripts")))
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH],
        env=os.environ | {"PYTHONPATH": paths},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


# The command itself -------------------------------------------------------------------------------------------------------


def command(arguments):
    environment = os.environ | {"PYTHONPATH": str(generate.DEMO_DOCUMENT.parent.parent), "HF_HUB_OFFLINE": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    script = generate.DEMO_DOCUMENT.with_name("generate.py")
    done = subprocess.run([sys.executable, str(script), *arguments], env=environment, capture_output=True)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_the_command_answers(files, capsys):
    code, out, err = command(arguments(files))
    assert code == 0, err
    assert out.strip() == run_json(capsys, arguments(files))["answer"]
    assert "[chunk 1 · context.txt:1-" in err


def test_the_command_refuses(files):
    code, out, err = command(arguments(files, "--temperature", "-1"))
    assert (code, out) == (2, "")
    assert err.splitlines() == ["error: temperature is -1.0; it should be 0 (greedy) or more."]


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_an_output_that_takes_nothing_more(files, capsys, monkeypatch, form):
    """`| head` is no error; a full disk is one, and so is an output that is closed."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as broken:
        monkeypatch.setattr(sys, "stdout", broken)
        assert generate.main(arguments(files, "--pattern", "llm", *form)) == 141
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert generate.main(arguments(files, "--pattern", "llm", *form)) == 2
    assert "No space left" in capsys.readouterr().err.splitlines()[-1]
    monkeypatch.setattr(sys, "stdout", None)
    assert generate.main(arguments(files, *form)) == 2
    assert capsys.readouterr().err == "error: The standard output is closed; send it to a file or to /dev/null.\n"


def test_streams_that_are_closed_or_cannot_write_everything(files, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    code, out, err = run(capsys, arguments(files, context="-"))
    assert (code, out) == (2, "") and "standard input is closed" in err
    monkeypatch.setattr(sys, "stderr", None)
    assert generate.main(arguments(files, "--temperature", "-1")) == 2
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))
    assert exit_code(lambda: print("é")) == 0 and out.getvalue() == b"\\xe9\n"


def test_what_was_printed_before_an_error_stays(monkeypatch, capsys, tmp_path):
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert exit_code(lambda: (print("row"), open(tmp_path / "none" / "x"))) == 2
    assert (tmp_path / "out").read_text() == "row\n"
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'none' / 'x'} cannot be used (No such file")


def test_json_is_json_in_every_encoding(files, monkeypatch):
    question, out = "Where is Zoë?", io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))
    assert generate.main(arguments(files, "--json", query=question)) == 0
    assert json.loads(out.getvalue())["results"][0]["query"] == question


def test_no_text_moves_the_cursor(files, capsys, tmp_path):
    write_json(tmp_path / "x.json", {"context": document(4), "query": "\x1b[31mred?", "target": "\x1b]0;owned\x07"})
    code, _, err = run(capsys, ["--model", str(files / "model"), *SMALL, "--example", "x.json"])
    assert code == 0 and "red?" in err and "owned" in err and not {"\x1b", "\x07"} & set(err)


# The terminal -------------------------------------------------------------------------------------------------------------

EVENTS = [
    ChunkRead(0, 2, 50, 60),
    MarginToken(0, " Mary went"),
    MarginToken(0, "\nhome."),
    Rollback(80, 60),
    MarginDone(Margin(0, 0, 50, "Mary went\nhome.", True, 0.9)),
    ChunkRead(1, 2, 40, 100),
    MarginDone(Margin(1, 50, 90, "None.", False, 0.125)),
    AnswerToken(" At"),
    AnswerToken(" home."),
    Done("At home.", [], 2, {"document": 90, "answer": 2, "margins": 0}, {"prefill": 1.5, "answer": 0.25}),
]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("no_color", ["", "1"])
def test_the_terminal_follows_a_run(capsys, monkeypatch, live, no_color):
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: live)
    terminal = Terminal(90)
    for event in EVENTS:
        terminal.show(event)
    captured = capsys.readouterr()
    assert captured.out == "At home.\n"
    cache = "  cache 80 -> 60" if live else ""
    assert shown(captured.err) == [
        f"[chunk 1] Mary went home.  ✓ relevant (0.90){cache}",
        "[chunk 2] nothing",
        "document: 90 tokens read in 1.50 s · answer: 2 tokens written in 0.25 s",
        "",
    ]
    assert ("90/90 tokens, 00:00 left" in captured.err) == live  # the progress bar is for people
    assert ("\x1b[32m[chunk 1]" in captured.err) == ("\x1b[2m[chunk 2]" in captured.err) == (live and not no_color)


def test_margins_that_grow_side_by_side_do_not_mix(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    terminal = Terminal(90)
    for chunk, text in ((0, "Mary"), (1, "No"), (0, " left"), (1, "pe."), (0, ".")):
        terminal.show(MarginToken(chunk, text))
    terminal.show(MarginDone(Margin(0, 0, 50, "Mary left.")))
    terminal.show(MarginDone(Margin(1, 50, 90, "Nope.", False)))
    terminal.close()
    assert shown(capsys.readouterr().err) == ["[chunk 1] Mary left.  ✓ relevant", "[chunk 2] Nope.  ✗ not relevant", ""]


def test_a_margin_grows_on_one_line_however_narrow_the_terminal_is(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("cli.terminal._columns", lambda: 30)
    terminal, text = Terminal(90), "Mary left\nthe garden 花园 and went to the kitchen."
    for letter in text:
        terminal.show(MarginToken(0, letter))
        *above, line = shown(capsys.readouterr().err)
        assert above == [] and len(line) < 30 and line.startswith("[chunk 1]")
    assert line == "[chunk 1] …nt to the kitchen."
    terminal.close()


@pytest.mark.parametrize(("words", "out"), [(["\n", "\n", "At", " home.\n"], "At home.\n\n"), (["\n"], "\n"), ([], "\n")])
def test_an_answer_begins_with_its_first_word(capsys, words, out):
    terminal = Terminal(90)
    for word in words:
        terminal.show(AnswerToken(word))
    terminal.show(Done("".join(words).strip(), [], 1))
    captured = capsys.readouterr()
    assert captured.out == out
    assert ("(no answer: the model wrote no text, or nothing but a thought" in captured.err) == (len(words) < 2)


def test_runs_of_chunks_that_brought_nothing_are_one_line(capsys):
    terminal = Terminal(90)
    for chunk, text in enumerate(["None.", "None", "", "Mary left.", "None.", "Perhaps.", "None."]):
        terminal.show(MarginDone(Margin(chunk, chunk, chunk + 1, text, text == "Mary left.")))
    terminal.show(Noted([]))
    assert shown(capsys.readouterr().err) == [
        "[chunks 1-3] nothing",
        "[chunk 4] Mary left.  ✓ relevant",
        "[chunk 5] nothing",
        "[chunk 6] Perhaps.  ✗ not relevant",
        "[chunk 7] nothing",
        "",
    ]


def test_every_model_that_is_loaded_has_its_progress_bar(capsys):
    show = WeightsBar()
    for n_bytes, total in ((512, 2048), (2048, 2048), (100, 100)):
        show(n_bytes, total)
    err = capsys.readouterr().err
    assert err.count("weights: 100%") == 2 and "2.00k/2.00k" in err and "100/100" in err


def test_weights_that_ctrl_c_ended_are_not_drawn_below_the_last_words(capsys):
    show = WeightsBar()
    show(512, 2048)
    capsys.readouterr()
    del show
    assert shown(capsys.readouterr().err) == [""]


@pytest.mark.parametrize("number, told", [(0.2499, "0.24"), (0.25, "0.25"), (0.29, "0.29"), (0.996, "0.99"), (1.0, "1.00")])
def test_a_number_stays_on_its_side_of_a_threshold(number, told):
    assert f"({told})" in verdict(number >= 0.25, number)
    assert number == 1 or f"({told} of the most)" in looked(number >= 0.25, number)


def test_what_there_was_no_room_for_is_said(files, capsys, tmp_path):
    """A context in which the document and the answer fit, and the words around notes do not."""
    plain = run_json(capsys, arguments(files))
    assert (plain["left_out"], plain["shortages"]) == ([], [])
    model = write_reader(tmp_path / "short", "llama")
    config = json.loads((model / "config.json").read_text())
    need = plan_of(model, files).min_length
    write_json(model / "config.json", config | {"max_position_embeddings": need + 20})
    options = arguments(files, "--threshold", "0", "--chunk-tokens", "20", "--model", str(model))
    found = run_json(capsys, options)
    assert found["left_out"] and len(found["left_out"]) == len(found["margins"]) < found["chunks_read"]
    [sentence] = found["shortages"]
    code, out, err = run(capsys, options)
    assert code == 0 and out.strip() == found["answer"] and sentence in err
    chunks = ", ".join(str(chunk + 1) for chunk in found["left_out"])
    assert f"had no room for the margins on these chunks: {chunks}." in err
    write_json(model / "config.json", config | {"max_position_embeddings": need - 1})
    code, out, err = run(capsys, options)
    assert (code, out) == (2, "") and "shorten the document by 1 tokens" in err


def plan_of(model, files):
    checkpoint, text = Checkpoint.open(str(model)), (files / "context.txt").read_text(encoding="utf-8")
    settings = Settings(chunk_tokens=20, margin_tokens=8, answer_tokens=7)
    return make_plan(checkpoint, text, [QUERY], settings, classifier=checkpoint)


def test_the_papers_loop_forgets_every_margin(files, capsys, monkeypatch):
    """Margins of a window are written beside the cache's contents: there is nothing to forget."""
    expected = run_json(capsys, arguments(files))["margins"]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    code, _, err = run(capsys, arguments(files))
    told = [tuple(map(int, pair)) for pair in re.findall(r"cache (\d+) -> (\d+)", err)]
    assert code == 0 and len(told) == len(expected) > 1
    assert all(old > new for old, new in told) and [new for _, new in told] == sorted({new for _, new in told})
    code, _, err = run(capsys, arguments(files, "--margin-window", "all"))
    assert code == 0 and "cache " not in err


def test_judged_chunks_are_shown(capsys):
    terminal = Terminal(90)
    for event in (ChunkJudged(0, 9, 40, False, 0.25), ChunkJudged(1, 9, 40, False, 0.5), ChunkJudged(2, 9, 40, True, 0.75)):
        terminal.show(event)
    terminal.show(ChunkJudged(3, 9, 40, False, 0.125))
    terminal.show(AnswerToken("So."))
    assert shown(capsys.readouterr().err) == [
        "[chunks 1-2] ✗ not relevant (at most 0.50)",
        "[chunk 3] ✓ relevant (0.75)",
        "[chunk 4] ✗ not relevant (0.12)",
        "",
    ]
