"""Measure prefill, decode, memory and whole runs, next to the machine's ceilings and to transformers.

    python scripts/benchmark.py                              Llama-3.1-8B shapes on a GPU; the demo checkpoint on a CPU
    python scripts/benchmark.py --shapes qwen2-7b --json qwen2.json
    python scripts/benchmark.py --model FOLDER               a real checkpoint
    torchrun --nproc-per-node 2 scripts/benchmark.py         one model over two cards, without transformers or cold runs

Weights are random unless --model is given: nothing is downloaded. Every margin is written at full length and judged
relevant, which is the dearest case. With transformers installed, its plain prompt and the published loop on its cache are
measured in the same process on the same weights. A cold run has a process of its own. How it is measured is in
scripts/measuring/.
"""

from __future__ import annotations

import cli.start  # noqa: F401  # isort: skip  (first: from here on, Ctrl-C gives no traceback)
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from cli.compiling import choose_compiled
from cli.options import Parser, add_compile_option, exit_code, parse_window
from cli.ranks import join, leave
from cli.start import FIRST, clear, loading_libraries
from cli.start import say as wait_for
from evaluation.plot import check_plot
from measuring.shapes import SHAPES

from model import InputError
from model.config import WEIGHTS
from wim.settings import Settings

if TYPE_CHECKING:
    from wim.budget import Plan

MOST_PROCESSES = 100


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--shapes", choices=list(SHAPES), default=None, help="random weights in these shapes")
    add("--layers", type=int, help="of the shapes, so many layers instead of all")
    add("--model", metavar="FOLDER_OR_ID", help="a real checkpoint instead")
    add("--tokens", type=int, help="of the document (default: 65536 on a GPU, 4096 elsewhere)")
    add("--chunk-tokens", type=int, help="default: 4096 on a GPU, 256 elsewhere")
    add("--margin-tokens", type=int, default=100)
    add("--answer-tokens", type=int, default=50)
    add("--windows", default="1,all", metavar="N,…,all", help="margin windows to run")
    add("--no-transformers", action="store_true", help="leave the comparison out")
    add("--plain-only", action="store_true", help="of transformers, run only the plain prompt")
    add("--device")
    add("--dtype")
    add("--weights", choices=WEIGHTS, default="float", help="int8: the layers' matrices rounded to 8 bits")
    add_compile_option(parser, compiles=True)
    add("--cold", type=int, default=1, metavar="N", help="cold processes for the last of the windows; default 1")
    add("--cold-result", metavar="FILE", help=argparse.SUPPRESS)  # in such a process: where to write what was measured
    add("--json", metavar="FILE", help="write everything there as well")
    add("--plot", metavar="FILE.png", help="draw seconds by phase (needs matplotlib)")
    return parser.parse_args(arguments)


def run(args: argparse.Namespace, arguments: list[str]) -> None:
    with loading_libraries():
        import torch
        from measuring import measures
        from measuring.random_document import random_plan

        from weights import Checkpoint
        from weights.config import read_model_config
        from weights.device import check_compile, pick_dtype

    device, rank = join(args.device)
    dtype, cuda = pick_dtype(args.dtype, device), device.type == "cuda"
    check_compile(bool(args.compile), device)
    if not args.model and not args.shapes:
        args.shapes, args.model = ("llama-3.1-8b", None) if cuda else (None, "demo-llama")
    if args.layers is not None and (args.model or args.layers < 1):
        raise InputError(f"--layers is {args.layers}; give at least 1, and shapes with --shapes, not --model.")
    n_tokens = args.tokens if args.tokens is not None else (65536 if cuda else 4096)
    if args.json and not (Path(args.json).absolute().parent.is_dir() and not Path(args.json).is_dir()):
        raise InputError(f"--json {args.json} is a folder, or its folder does not exist; give a file's path.")
    if args.plot:
        check_plot(args.plot)
    if not 0 <= args.cold <= MOST_PROCESSES:
        raise InputError(f"--cold is {args.cold}; give at most {MOST_PROCESSES}, or 0 to leave it out.")
    if n_tokens < 1:
        raise InputError(f"--tokens is {n_tokens}; give at least 1.")
    settings = Settings(
        chunk_tokens=args.chunk_tokens if args.chunk_tokens is not None else (4096 if cuda else 256),
        margin_tokens=args.margin_tokens,
        answer_tokens=args.answer_tokens,
        threshold=0.0,  # every margin is relevant
        margins="written",
    )
    windows = {text: parse_window(text, "--windows") for text in args.windows.split(",")}
    to_run = {"llm": {"pattern": "llm"}, "underlined": {"margins": "underlined"}}
    to_run |= {f"wim, window {text}": {"margin_window": window} for text, window in windows.items()}
    checkpoint = Checkpoint.open(args.model) if args.model else None
    if checkpoint is None:
        published = SHAPES[args.shapes] | ({} if args.layers is None else {"num_hidden_layers": args.layers})
    else:
        published = json.loads((checkpoint.folder / "config.json").read_text())
    config = read_model_config(published) if checkpoint is None else checkpoint.config
    plans = [random_plan(config, replace(settings, **changes), n_tokens) for changes in to_run.values()]
    capacity = max(plan.capacity for plan in plans)
    ahead = plans[-1:] if args.cold_result else 2 * plans  # each run is warmed up, but for that of a cold process
    n_steps = sum(decode_steps(plan) for plan in ahead)
    compiled = choose_compiled(args.compile, device, dtype, config, len(ahead) * n_tokens, n_steps)
    cold = [] if args.cold_result or rank is not None else cold_runs(args.cold, arguments)
    model = measures.load(checkpoint, config, capacity, device, dtype, args.weights, rank)
    if compiled:
        model.compile_layers()
    bench = measures.Bench(model, published, device, dtype, settings, n_tokens, capacity, rank)
    *_, (last_label, last_changes) = to_run.items()
    if args.cold_result:
        found = {"compiled": compiled, **measures.whole_run(bench, last_changes)}
        Path(args.cold_result).write_text(json.dumps(found))
        return
    name = torch.cuda.get_device_name(device) if cuda else f"{platform.processor() or platform.machine()} CPU"
    results: dict = {
        "date": time.strftime("%Y-%m-%d"),
        "device": name,
        "torch": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "processes": 1 if rank is None else rank.size,
        "weights": args.weights,
        "model": args.model or f"{args.shapes} (random weights, {config.num_hidden_layers} layers)",
        "weights_gib": bench.weight_bytes / measures.GIB,
        "document_tokens": bench.n_tokens,
        "compiled": compiled,
        "settings": vars(settings),
    }
    layers = layers_of(results)
    say(f"{results['model']} on {name}, {results['dtype']}, torch {torch.__version__}, {layers}, {results['date']}")

    results["cold_first_tokens_s"] = measures.cold_start(bench)
    first_tokens = f"first two tokens after a chunk {results['cold_first_tokens_s']:.1f} s from loaded weights"
    say(f"cold process, {layers}: {first_tokens}")
    if cold:
        results["cold_runs"] = {last_label: cold}
        say_cold(last_label, cold)

    results["ceilings"] = ceiling = measures.ceilings(bench)
    say(f"ceilings: copy {ceiling['copy_tb_s']:.3g} TB/s, matmul {ceiling['matmul_tflop_s']:.3g} TFLOP/s")
    results["lengths"] = measures.prefill_and_decode(bench, ceiling)
    say("\n| tokens | prefill s | of matmul rate | decode ms/token | TB/s | of copy rate |\n|---|---|---|---|---|---|")
    for row in results["lengths"][:-1]:
        say(
            f"| {row['tokens']} | {row['prefill_s']:.3f} | {row['prefill_share_of_matmul']:.0%} | {row['decode_ms']:.2f} "
            f"| {row['decode_tb_s']:.3g} | {row['decode_share_of_copy']:.0%} |"
        )
    say(f"rollback: {results['lengths'][-1]['rollback_us']:.2f} µs")

    runs = results["runs"] = {}
    for label, changes in to_run.items():
        measures.whole_run(bench, changes)  # warms up; as theirs, at full length, for which cuDNN makes its plans
        runs[label] = measures.whole_run(bench, changes, questions=1 if changes == {"margin_window": 1} else 2)
        say_run(label, runs[label])
    if rank is not None:
        rank.finish()
    if args.weights != "float" or rank is not None:
        args.no_transformers = True  # which cannot compute on these weights
    if not args.no_transformers and not find_spec("transformers"):
        say("transformers is not installed, so the comparison with it is left out: pip install -e '.[test]'")
    elif not args.no_transformers:
        import transformers

        results["transformers"] = transformers.__version__
        for label, seconds in measures.baseline(bench, args.plain_only).items():
            runs[f"transformers {transformers.__version__}, {label}"] = seconds
            say_run(f"transformers, {label}", seconds)
    say_ratios(runs)
    if args.json and FIRST:
        Path(args.json).write_text(json.dumps(results, indent=1, default=str) + "\n")
    if args.plot and FIRST:
        plot(results, args.plot)


def decode_steps(plan: Plan) -> int:
    """Of a run whose margins are all written at full length."""
    written = plan.settings.pattern == "wim" and plan.settings.margins == "written"
    return plan.settings.answer_tokens + (len(plan.margin_windows()) * plan.settings.margin_tokens if written else 0)


def cold_runs(n_processes: int, arguments: list[str]) -> list[dict[str, float]]:
    """The last of the windows in new processes: whole_run's figures, from loaded weights on, and `process_s`, all of it.

    Raises InputError where one fails.
    """
    found, same_code = [], {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with TemporaryDirectory() as folder:
        result = Path(folder) / "cold.json"
        command = [sys.executable, __file__, *arguments, "--cold-result", str(result)]
        for n in range(n_processes):
            wait_for(f"measuring cold process {n + 1} of {n_processes}")
            start = time.perf_counter()
            process = subprocess.run(command, capture_output=True, text=True, env=same_code)
            seconds = time.perf_counter() - start
            if process.returncode:
                said = (process.stderr.strip().splitlines() or ["it said nothing"])[-1]
                if process.returncode == 2 and said.startswith("error: "):
                    raise InputError(said.removeprefix("error: "))  # it would be said here too
                raise InputError(f"A cold process ended with {process.returncode} ({said}); leave it out with --cold 0.")
            found.append({**json.loads(result.read_text()), "process_s": seconds})
        clear()
    return found


def say_cold(label: str, runs: list[dict[str, float]]) -> None:
    total, process = (statistics.median(run[name] for run in runs) for name in ("total_s", "process_s"))
    seconds = f"{total:.1f} s from loaded weights, {process:.1f} s in all, the medians of {len(runs)}"
    say(f"cold process, {layers_of(runs[0])}: {label} {seconds}")


def layers_of(measured: dict) -> str:
    return "compiled layers" if measured["compiled"] else "layers as they are"


def say_run(label: str, run: dict[str, float]) -> None:
    phases = ("total", "prefill", "margins", "verdicts", "answer", "second_question")
    times = ", ".join(f"{phase} {run[f'{phase}_s']:.2f} s" for phase in phases if run.get(f"{phase}_s") is not None)
    if run.get("first_margin_s") is not None:
        times += f", first margin after {run['first_margin_s']:.2f} s with {run['share_read_at_first_margin']:.0%} read"
    extra = run.get("peak_over_weights_and_cache_gib")
    say(f"{label}: {times}" + (f", peak over weights and cache {extra:.2f} GiB" if extra is not None else ""))


def say_ratios(runs: dict[str, dict[str, float]]) -> None:
    """Each of our runs against our plain run and against transformers'."""
    others = {label: run["total_s"] for label, run in runs.items() if label == "llm" or label.startswith("transformers")}
    for label, run in runs.items():
        if label.startswith("transformers"):
            continue
        ratios = [
            f"{run['total_s'] / total:.2f} times the seconds of {other}"
            for other, total in others.items()
            if other != label
        ]
        if ratios:
            say(f"{label}: {', '.join(ratios)}")


def plot(results: dict, path: str) -> None:
    """Seconds by phase, a bar for each run."""
    import matplotlib.pyplot as plt

    runs, phases = results["runs"], ("prefill", "margins", "verdicts", "answer")
    figure, axes = plt.subplots(figsize=(8, 0.6 * len(runs) + 1.4), layout="constrained")
    left = [0.0] * len(runs)
    for phase in phases:
        widths = [run.get(f"{phase}_s") or 0.0 for run in runs.values()]
        axes.barh(list(runs), widths, left=left, label=phase)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel(f"seconds, {results['document_tokens']:,} tokens, {results['model']}, {results['device']}")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=160)


def say(line: str) -> None:
    print(line, flush=True)


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parse_arguments(arguments)
    return exit_code(lambda: run(args, arguments))


if __name__ == "__main__":
    leave(main)
