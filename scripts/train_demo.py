"""Train a demo checkpoint: a model of a few million parameters that reads short stories hidden in books.

    python scripts/train_demo.py --family llama --out demo --text BOOKS --minutes 20

What it is taught, and how, is in scripts/training/. It writes a folder as checkpoints are published, and once a minute the
state of the run, from which --resume goes on after an interruption.
"""

from __future__ import annotations

import cli.start  # noqa: F401  # isort: skip  (first: from here on, Ctrl-C gives no traceback)
import argparse
import os
import sys
from pathlib import Path

from cli.options import Parser, exit_code
from cli.start import loading_libraries
from training.choices import FAMILIES, OPTIMIZERS, SIZES

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the workers are the parallelism
LENGTHS = "128-256:0.2,256-1024:0.45,1024-2048:0.15,2048-4096:0.1,4096-8192:0.1"


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--family", default="llama", help=f"{', '.join(FAMILIES)} (default: llama)")
    add("--out", type=Path, required=True, metavar="FOLDER", help="the checkpoint folder to write, which holds none yet")
    add("--text", type=Path, metavar="FOLDER", help="books as .txt files; without it there is only built-in prose")
    add("--hold-out", action="append", default=[], metavar="NAME", help="leave out books with this in the file's name")
    add("--start-from", metavar="FOLDER_OR_NAME", help="train on from a demo checkpoint's weights and tokenizer")
    add("--minutes", type=float, help="length of the run in time, compilation not counted")
    add("--steps", type=int, help="length of the run in steps")
    add("--resume", action="store_true", help="go on from the saved state, if there is one")
    add("--state", type=Path, metavar="FILE", help="where the state is saved (default: training.pt in --out)")
    add("--save-every", type=float, default=60.0, metavar="SECONDS", help="default: 60")
    add("--log-every", type=float, default=5.0, metavar="SECONDS", help="default: 5")
    add("--lengths", default=LENGTHS, help=f"of documents: LEAST-MOST:SHARE OF TOKENS,... (default: {LENGTHS})")
    add("--question-lengths-max", type=int, default=1 << 30, metavar="N", help="longer documents get no questions")
    add("--row", type=int, default=9216, metavar="TOKENS", help="length of a training row (default: 9216)")
    add("--batch", type=int, default=16, metavar="ROWS", help="rows in a step (default: 16)")
    add("--optimizer", default="muon", help=f"{' or '.join(OPTIMIZERS)} (default: muon)")
    add("--lr", type=float, default=2e-3, help="the highest learning rate (default: 2e-3)")
    add("--warmup", type=int, default=200, metavar="STEPS", help="default: 200")
    add("--text-loss", type=float, default=0.1, help="weight of a document token; a reply's is 1 (default: 0.1)")
    add("--size", action="append", default=[], metavar="NAME=NUMBER", help=f"of config.json; names: {', '.join(SIZES)}")
    add("--seed", type=int, default=0)
    add("--workers", type=int, help="processes that make batches (default: two less than there are cores)")
    add("--device", help="cuda or cpu (default: cuda where there is one)")
    args = parser.parse_args(argv)
    args.state = args.state or args.out / "training.pt"
    args.workers = max(1, (os.cpu_count() or 1) - 2) if args.workers is None else args.workers
    return args


def run(args: argparse.Namespace) -> None:
    with loading_libraries():
        from training.session import train

    train(args)


if __name__ == "__main__":
    sys.exit(exit_code(lambda: run(arguments())))
