"""scripts/benchmark.py: every measurement runs, against transformers too. The figures themselves are for people."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SMALL = ["--tokens", "300", "--chunk-tokens", "128", "--margin-tokens", "3", "--answer-tokens", "3"]


def benchmark(*arguments):
    command = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "--device", "cpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_all_measurements_run_and_are_written(tmp_path):
    ended = benchmark("--model", "demo-llama", *SMALL, "--json", str(tmp_path / "results.json"))
    assert ended.returncode == 0, ended.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["tokens"] for row in results["lengths"][:-1]] == [128, 300]
    runs = results["runs"]
    assert [name.split(",")[0].split()[0] for name in runs] == ["llm", "wim", "wim", "transformers", "transformers"]
    assert all(run["total_s"] > 0 for run in runs.values())
    assert ended.stdout.count("times the seconds of llm") == 2  # a line of ratios for each window


def test_bad_input_gets_a_sentence():
    ended = benchmark("--windows", "1,two")
    sentence = "error: --windows is 'two'; give a number of chunks from 1 up, or all.\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", sentence)
