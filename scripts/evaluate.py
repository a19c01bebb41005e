"""Measure the patterns: the whole document at once (llm), retrieval (rag) and Writing in the Margins (wim).

    python scripts/evaluate.py                                    the demo checkpoint on its tasks at 1K and 2K tokens
    python scripts/evaluate.py --model FOLDER_OR_ID --tasks single_fact,two_facts --lengths 4096,16384 --out results/
    python scripts/evaluate.py --model FOLDER_OR_ID --data hotpot_dev_distractor_v1.json --lengths 16384 --out results/

The table goes to stdout row by row; every question, margin, verdict and answer goes to answers.jsonl in the folder of the
results. The same command goes on where it was interrupted.
"""

from __future__ import annotations

import cli.start  # noqa: F401  # isort: skip  (first: from here on, Ctrl-C gives no traceback)
import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cli.compiling import choose_compiled
from cli.options import (
    MAX_DIGITS,
    Parser,
    add_checkpoint_options,
    add_reading_options,
    check_options,
    exit_code,
    open_checkpoints,
    reading_prompts,
    reading_settings,
    whole_number,
)
from cli.start import clear, loading_libraries
from evaluation.margins import note_table, right_table
from evaluation.plot import check_plot, plot
from evaluation.progress import Progress
from evaluation.results import Results, fingerprint
from evaluation.run import Setup, run
from evaluation.source import Cell, Source
from evaluation.table import ScoreTable, measures
from evaluation.workers import usable_cores
from tasks import FORMATS, TASKS
from tasks.background import text_files
from tasks.formats import default_corpus
from tasks.hiding import N_FACTS

from model import InputError
from weights.files import SMALL_FILES, weight_files
from weights.hub import resolve
from wim.settings import PATTERNS, WISHES, Settings, Wishes

SCORED = "In percent, with the 95% interval; n documents. What counts:"
RIGHT = "Right in percent, word for word: margins of chunks with and without evidence; and verdicts:"
NOTES = """Margins that say something: the evidence found in those that were kept, in percent; how many were
kept of the useful and of the useless ones; the area under the curve of the verdicts on the two:"""
# Models up to so many bytes are answered by several processes, each with weights of its own.
SMALL_MODEL = 100 * 10**6
# The most unasked: each takes seconds to start and 400 MiB, and cores that are seen may be other containers' as well.
DEFAULT_WORKERS = 8
# What nobody means by them, and what would take hours before the first answer.
MOST = {"documents": 100_000, "questions": 1_000, "statements": 10_000, "workers": 1_024}
AMPLE = 64  # tokens for each fact: no fact has so many, so there is room


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--patterns", default="llm,rag,wim", metavar="NAME,…", help="default: llm,rag,wim")
    add("--tasks", metavar="NAME,…", help=f"default: all, or those in the checkpoint's {WISHES}: {', '.join(TASKS)}")
    add("--lengths", metavar="N,…", help="of documents, in tokens; default 1024,2048; with --data: as they are in the file")
    add("--documents", type=int, default=50, metavar="N", help="for each task and length; default 50")
    add("--questions", type=int, default=1, metavar="N", help="of each task, about one document; default 1")
    add("--statements", type=int, metavar="N", help="facts in a document; default 12")
    add("--text", metavar="FOLDER", help="books as .txt files to hide the facts in; default: generated prose")
    add("--data", metavar="FILE", help="documents and questions of a file instead of generated ones")
    add("--format", metavar="NAME", help=f"of --data: {', '.join(FORMATS)}; default: what its first record looks like")
    add("--corpus", metavar="FILE", help="the articles of MultiHop-RAG; default: corpus.json beside --data")
    add("--out", default="results", metavar="FOLDER", help="where answers and settings are kept; default: results")
    add(
        "--workers",
        type=int,
        metavar="N",
        help=f"CPU: processes side by side; default 1; of a small model one a core, up to {DEFAULT_WORKERS}",
    )
    add("--plot", metavar="FILE", help="draw accuracy against length (needs matplotlib)")
    add_checkpoint_options(parser, compiles=True)
    add_reading_options(parser, margin_window="all")
    return parser.parse_args(arguments)


def names(text: str, option: str, known: list[str]) -> list[str]:
    """Names separated by commas. Raises InputError for one that is not known."""
    found = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in found:
        if name not in known:
            raise InputError(f"{option} names {name!r}; choose among {', '.join(known)}.")
    return found


def numbers(text: str, option: str) -> list[int]:
    """Numbers separated by commas. Raises InputError for one that is none, or not positive."""
    parts = [part.strip() for part in text.split(",")]
    found = [whole_number(part) for part in parts]
    if None in found:
        raise InputError(
            f"{option} names {parts[found.index(None)][:40]!r}; give whole numbers above zero of at most {MAX_DIGITS} "
            "digits, such as 1024,2048."
        )
    return list(dict.fromkeys(found))


def check(args: argparse.Namespace) -> None:
    """Raises InputError for options that do not go together."""
    for option, most in MOST.items():
        value = getattr(args, option)
        if value is not None and not 1 <= value <= most:
            raise InputError(f"--{option} is {str(value)[:40]}; give at least 1 and at most {most:,}.")
    if args.data is None and (args.format or args.corpus):
        raise InputError("--format and --corpus describe a file; name it with --data.")
    if args.data is not None and (args.tasks or args.text is not None or args.statements):
        raise InputError("--data brings its own documents and questions; leave out --tasks, --text and --statements.")
    if args.text is not None:
        text_files(args.text)  # before the workers start, which takes seconds
    if args.plot:
        check_plot(args.plot)


def make_setup(args: argparse.Namespace) -> Setup:
    """What the options ask for, all small files read. Raises InputError for what cannot be."""
    check(args)
    source = Source(args.text, args.statements, args.data, args.format, args.corpus, args.questions, args.seed)
    tasks = names(args.tasks, "--tasks", list(TASKS)) if args.tasks else []
    lengths: list[int | None] = [None] if args.data else [1024, 2048]
    if args.lengths:
        lengths = list(numbers(args.lengths, "--lengths"))
    patterns = names(args.patterns, "--patterns", list(PATTERNS))
    if "wim" not in patterns and (args.pack or args.keep_repeats):
        raise InputError(
            f"--pack and --keep-repeats are for the pattern wim, and --patterns names {args.patterns}; leave them out."
        )
    cells = tuple(source.cells(tasks or list(TASKS), lengths))
    check_options(args)
    with loading_libraries():
        from weights.device import check_compile, pick_device, pick_dtype
        from wim import WiM  # noqa: F401  (and what it needs)

    device = pick_device(args.device)
    check_compile(bool(args.compile), device)
    dtype = pick_dtype(args.dtype, device)
    checkpoint, classifier = open_checkpoints(args)
    settings, prompts = reading_settings(args, checkpoint), reading_prompts(args, checkpoint)
    if not tasks and not args.data and (wished := Wishes.of(checkpoint.folder).tasks):
        cells = tuple(source.cells(names(",".join(wished), str(checkpoint.folder / WISHES), list(TASKS)), lengths))
    limit = checkpoint.config.context_length
    if max(length or 0 for length in lengths) > limit:
        raise InputError(f"--lengths asks for {max(lengths)} tokens and {args.model} has {limit} positions; ask for less.")
    for cell in cells:  # before a folder is made
        if not args.data and cell.length == min(lengths) <= AMPLE * (args.statements or N_FACTS):
            next(source.documents(cell, checkpoint.tokenizer))  # which says where there is no room for the facts
    clear()
    compiled = choose_compiled(args.compile, device, dtype, checkpoint.config, *work_ahead(args, settings, cells, patterns))
    return Setup(
        checkpoint,
        classifier,
        settings,
        prompts,
        tuple(patterns),
        source,
        cells,
        args.documents,
        device,
        dtype,
        compiled,
        args.weights,
    )


def work_ahead(
    args: argparse.Namespace, settings: Settings, cells: Sequence[Cell], patterns: Sequence[str]
) -> tuple[int, float]:
    """Tokens to read and decode steps to take, about; few replies take as many as they may."""
    tokens_read = args.documents * sum(cell.length or settings.chunk_tokens for cell in cells)
    writes = "wim" in patterns and settings.margins != "underlined"
    most_steps = len(patterns) * settings.answer_tokens + writes * settings.margin_tokens  # margins: of a window at once
    return tokens_read, args.documents * args.questions * sum(len(cell.tasks) for cell in cells) * most_steps / 4


def count_workers(args: argparse.Namespace, setup: Setup) -> int:
    """How many processes are to answer. Raises InputError for several on a device that one keeps busy."""
    on_cpu = setup.device.type == "cpu"
    if args.workers is None:
        small = on_cpu and setup.checkpoint.weight_bytes(setup.dtype, setup.weights) <= SMALL_MODEL
        return min(usable_cores(), DEFAULT_WORKERS) if small else 1
    if args.workers > 1 and not on_cpu:
        raise InputError(f"--workers is {args.workers}, and one process keeps {setup.device} busy; leave it out.")
    return args.workers


def stored_settings(setup: Setup, args: argparse.Namespace) -> dict:
    """All that an answer depends on; the contents of models and texts by their fingerprints."""
    from weights.safetensors_loader import read_headers

    folders = {args.model: resolve(args.model, args.revision)}
    if args.classifier not in ("same", "none"):
        folders[args.classifier] = resolve(args.classifier)
    weights, small_files = {}, {}
    for name, folder in folders.items():
        read_headers(folder)  # which says what is absent, or damaged
        weights[name] = fingerprint(folder / file for file in weight_files(folder))
        small_files[name] = fingerprint(path for file in SMALL_FILES if (path := folder / file).exists())
    corpus = args.corpus
    if corpus is None and setup.cells[0].tasks == ("multihop_rag",):
        corpus = default_corpus(args.data)
    files = [Path(name) for name in (args.data, corpus) if name is not None]
    files += text_files(args.text) if args.text is not None else []
    reading = {name: value for name, value in asdict(setup.settings).items() if name != "pattern"}
    return {
        "model": args.model,
        "revision": args.revision,
        "classifier": args.classifier,
        "weights": weights,
        "small_files": small_files,
        **asdict(setup.source),
        "contents": fingerprint(files),
        **reading,
        "prompts": asdict(setup.prompts or Wishes.of(setup.checkpoint.folder).prompts),
        "device": setup.device.type,
        "dtype": str(setup.dtype).removeprefix("torch."),
        "quantised": None if setup.weights == "float" else setup.weights,  # results from before there was a choice go on
    }


def evaluate(args: argparse.Namespace) -> None:
    setup = make_setup(args)
    n_workers = count_workers(args, setup)
    asked = {"cells": [asdict(cell) for cell in setup.cells], "patterns": setup.patterns, "documents": args.documents}
    results = Results(args.out, stored_settings(setup, args), asked)
    progress = Progress(setup.cells, setup.source, args.documents, setup.patterns, results)
    table = ScoreTable(setup.cells, setup.patterns)

    def asked_records() -> list[dict]:
        """Those of this run: the folder may hold more documents than it asks for."""
        return [record for record in results.records.values() if record["document"] < args.documents]

    def finish_cell(cell: Cell) -> None:
        for line in [*(table.header() if cell == setup.cells[0] else []), *table.rows(asked_records(), cell)]:
            progress.print(line)

    try:
        left_out = run(setup, results, progress, finish_cell, n_workers)
    finally:
        progress.close()
    if left_out and not asked_records():
        raise InputError(f"No document fits; the first: {left_out[0]}")
    if left_out:
        print(f"Documents left out, since they do not fit: {len(left_out)}. The first: {left_out[0]}", file=sys.stderr)
    records = asked_records()
    print_block(SCORED, measures(records, setup.cells))
    print_block(RIGHT, ["", *rows] if (rows := right_table(records, setup.cells)) else [])
    print_block(NOTES, ["", *rows] if (rows := note_table(records, setup.cells)) else [])
    if args.plot:
        plot(records, setup.cells, setup.patterns, args.model, args.plot)


def print_block(title: str, lines: list[str]) -> None:
    """Lines under a title, where there are any."""
    if lines:
        print("", title, *lines, sep="\n")


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    return exit_code(lambda: evaluate(args), "Interrupted; the same command goes on from here.")


if __name__ == "__main__":
    sys.exit(main())
