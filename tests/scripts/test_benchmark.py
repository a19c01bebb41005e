"""scripts/benchmark.py: every measurement runs, against transformers too. The figures themselves are for people."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import benchmark  # noqa: E402
from measuring import measures  # noqa: E402

SMALL = ["--tokens", "300", "--chunk-tokens", "128", "--margin-tokens", "3", "--answer-tokens", "3", "--device", "cpu"]


def test_all_measurements_run_and_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(measures.CEILING_SIZES, "other", (1 << 20, 64))
    assert benchmark.main(["--model", "demo-llama", *SMALL, "--json", str(tmp_path / "results.json")]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["tokens"] for row in results["lengths"][:-1]] == [128, 300]
    assert results["lengths"][-1]["rollback_us"] > 0
    [cold] = results["cold_runs"]["wim, window all"]
    assert 0 < cold["first_margin_s"] < cold["total_s"] < cold["process_s"] and not cold["compiled"]
    runs = results["runs"]
    assert [name.split(",")[0].split()[0] for name in runs] == [
        "llm",
        "underlined",
        "wim",
        "wim",
        "transformers",
        "transformers",
    ]
    assert all(run["total_s"] > 0 for run in runs.values())
    first = {name: runs[f"wim, window {name}"] for name in ("1", "all")}
    assert all(0 < run["first_margin_token_s"] < run["first_margin_s"] < run["total_s"] for run in first.values())
    assert [run["share_read_at_first_margin"] for run in first.values()] == [pytest.approx(128 / 300), 1]
    assert capsys.readouterr().out.count("times the seconds of llm") == 3  # a line of ratios for each window


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--windows", "1,two"], "--windows is 'two'; give a number of chunks from 1 up, or all."),
        (["--tokens", "1" + 20 * "0"], "the model has 12288 positions; give less."),
        (["--tokens", "9" * 5000], "argument --tokens: invalid int value"),
        (["--tokens", "0"], "--tokens is 0"),
        (["--cold", "-1"], "--cold is -1"),
        (["--cold", "101"], "--cold is 101; give at most 100"),
        (["--margin-tokens", "1" + 20 * "0"], "lower --margin-tokens"),
        (["--answer-tokens", "1" + 20 * "0"], "lower --answer-tokens"),
        (["--layers", "2"], "--layers is 2; give at least 1, and shapes with --shapes, not --model."),
        (["--shapes", "llama-3.1-70b", "--layers", "0"], "--layers is 0"),
        (["--shapes", "llama-3.1-8b", "--tokens", "200000"], "the model has 131072 positions"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_bad_input_gets_a_sentence_before_work(options, words, monkeypatch, capsys):
    monkeypatch.setattr(measures, "load", None)
    model = [] if "--shapes" in options else ["--model", "demo-llama"]
    try:
        code = benchmark.main([*model, "--device", "cpu", *options])
    except SystemExit as stopped:  # the arguments
        code = stopped.code
    captured = capsys.readouterr()
    assert (code, captured.out) == (2, "")
    assert captured.err.startswith("error: ") and words in captured.err
    assert captured.err.count("\n") == 1 and len(captured.err) < 700


def test_a_cold_process_that_fails_says_why(monkeypatch, tmp_path, capsys):
    script = tmp_path / "other.py"
    monkeypatch.setattr(benchmark, "__file__", str(script))
    for code, said in (
        (
            "import sys; sys.exit('error: No room.')",
            "error: A cold process ended with 1 (error: No room.); leave",
        ),
        ("import sys; print('error: No room.', file=sys.stderr); sys.exit(2)", "error: No room.\n"),
    ):
        script.write_text(code)
        assert benchmark.main(["--model", "demo-llama", *SMALL]) == 2
        captured = capsys.readouterr()
        assert captured.out == "" and captured.err.startswith(said)
