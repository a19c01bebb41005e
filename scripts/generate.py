"""Answer a question about a long document, with margins written on the way.

    python scripts/generate.py                                      the demo checkpoint and a demo document
    python scripts/generate.py --model meta-llama/Llama-3.1-8B-Instruct --context book.txt --query "Who …?"
    pdftotext paper.pdf - | python scripts/generate.py --query "What …?"
    python scripts/generate.py --interactive                        further questions, and changes to the notes
    torchrun --nproc-per-node 2 scripts/generate.py --model …       one model over two cards

The answer goes to stdout, everything else to stderr. At Ctrl-C the model reads no further chunk and answers from what it
has read; a second one, or one during the answer, quits. With --interactive each comes back to the prompt.
"""

from __future__ import annotations

import cli.start  # noqa: F401  # isort: skip  (first: from here on, Ctrl-C gives no traceback)
import argparse
import json
import signal
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cli.asking import Asking
from cli.documents import Document, check_paths, read_document, read_piped
from cli.keyboard import ctrl_c_unseen, on_ctrl_c, take_lines, unheeded
from cli.options import (
    Parser,
    add_checkpoint_options,
    add_reading_options,
    check_options,
    exit_code,
    open_checkpoints,
    reading_prompts,
    reading_settings,
)
from cli.prompt import Prompt, with_room
from cli.ranks import join, leave, stepping
from cli.record import Record
from cli.sources import Sources
from cli.start import FIRST, SHARED, clear, loading_libraries, say
from cli.terminal import printable
from cli.weights_bar import WeightsBar
from report import Recorder, check_report, write_report
from texts import read_text

from model import InputError
from weights.hub import DEMOS
from wim.settings import PATTERNS, Settings

if TYPE_CHECKING:  # what needs torch is imported where it is used: --help does not wait for it
    from wim import WiM

DEMO_DOCUMENT = Path(__file__).with_name("demo.txt")
DEMO_QUERY = "Where is the lamp?"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    paths = (
        "the document: UTF-8 text files and folders of them, each file headed by its path if there are several; - is stdin"
    )
    add("--context", action="extend", nargs="+", metavar="PATH", help=paths)
    add("--query", action="append", metavar="TEXT", help="the question; give several to ask them one after the other")
    add("--example", metavar="FILE", help="a JSON file with `context`, `query` and optionally `target`")
    add("--pattern", choices=PATTERNS, default=Settings.pattern)
    add("--interactive", action="store_true", help="then ask for further questions, and for changes to the margins")
    add("--review", action="store_true", help="before an answer is written, show its margins and ask for changes")
    add("--report", metavar="FILE.html", help="write a page to look at, with the margins beside the document")
    add("--json", action="store_true", help="print one JSON object on stdout instead of the answer")
    add_checkpoint_options(parser)
    add_reading_options(parser, margin_window="1")
    return parser.parse_args(arguments)


def read_input(args: argparse.Namespace) -> tuple[Document, list[str], str | None]:
    """The document, the questions, and the target if an example gives one.

    Raises InputError for files that are not there, not text, or not an example.
    """
    if args.example is not None:
        if args.context is not None or args.query:
            raise InputError("--example brings its own document and question; leave out --context and --query.")
        return read_example(args.example)
    check_paths(args.context or [])
    if args.context is not None and not args.query and not args.interactive:
        raise InputError("--context needs a question; add --query, or --interactive to type some.")
    document = read_document(args.context) if args.context is not None else read_piped()
    if document is None:
        document = Document(DEMO_DOCUMENT.read_text(encoding="utf-8"), DEMO_DOCUMENT.name)
        return document, args.query or [DEMO_QUERY], None
    if not args.query and not args.interactive:
        raise InputError("The standard input brings a document and needs a question; add --query.")
    return document, args.query or [], None


def read_example(path: str) -> tuple[Document, list[str], str | None]:
    text = read_text(path, "The example")
    try:
        example = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"The example {path} is not JSON ({error}); it should be an object.") from None
    for key in ("context", "query"):
        if not isinstance(example, dict) or not isinstance(example.get(key), str):
            raise InputError(f"The example {path} has no text under {key!r}; it needs `context` and `query`.")
    target = example.get("target")
    return Document(example["context"], path), [example["query"]], None if target is None else str(target)


def check_wishes(args: argparse.Namespace) -> None:
    """Raises InputError for options that do not go together."""
    if args.json and (args.interactive or args.review):
        raise InputError("--json is for a run without a person; leave it out, and /save writes the same from the prompt.")
    if args.interactive and args.pattern == "rag":
        raise InputError("--interactive asks a document many questions, and --pattern rag reads it anew for each; use wim.")
    if SHARED and (args.interactive or args.review):
        raise InputError(
            "--interactive and --review are for one process, as torchrun ends all of them at Ctrl-C; give several --query."
        )
    if args.review and args.pattern != "wim":
        raise InputError(f"--review is about margins, and --pattern {args.pattern} has none; use wim.")


def run(args: argparse.Namespace) -> None:
    check_options(args, args.pattern)
    check_wishes(args)
    document, queries, target = read_input(args) if FIRST else (None, [], None)
    for query in queries:
        if not query.strip():
            raise InputError("The question is empty; give a text with --query.")
    if args.report is not None and FIRST:
        check_report(args.report, args.context or [])
    if args.interactive or args.review:
        take_lines(document.piped)
    with loading_libraries():
        from weights.device import peak_bytes, pick_dtype
        from wim import open_document

    device, rank = join(args.device)
    if rank is not None:
        document, queries, target = rank.agreed((document, queries, target))
    checkpoint, classifier = open_checkpoints(args)
    settings, prompts = reading_settings(args, checkpoint, args.pattern), reading_prompts(args, checkpoint)
    dtype = pick_dtype(args.dtype, device)
    say("cutting the document into chunks")

    def opened(queries: list[str]) -> WiM:
        return open_document(
            checkpoint,
            document.text,
            queries,
            settings,
            prompts=prompts,
            classifier=classifier,
            device=device,
            dtype=dtype,
            progress=WeightsBar.on_terminal(),
            compiled=args.compile,
            weights=args.weights,
            rank=rank,
        )

    with ctrl_c_unseen():
        wim, room = with_room(opened, queries, checkpoint.tokenizer) if args.interactive else (opened(queries), 0)
    wim.headings = document.headings
    clear()
    size = f"{wim.plan.document_tokens:,} tokens, {(n_chunks := len(wim.plan.chunks)):,} chunk{'s' * (n_chunks != 1)}"
    kept = " with int8 weights" if args.weights == "int8" else ""
    places = device if rank is None else f"{rank.size} x {device.type}"
    computed_in = str(dtype).removeprefix("torch.")
    where = f"{checkpoint.name} on {places}, {computed_in}{kept}"
    print(printable(f"document: {document}, {size} · {where}"), file=sys.stderr)
    own_text = args.context is not None or args.example is not None or document.piped
    if own_text and checkpoint.folder in DEMOS.values():
        print("This is a demo, which knows the people of its own stories; --model takes a real one.", file=sys.stderr)
    for sentence in wim.plan.shortages():
        print(sentence, file=sys.stderr)

    def about() -> dict:
        return {
            "target": target,
            "model": checkpoint.name,
            "classifier": args.classifier,
            "device": str(device),
            "processes": 1 if rank is None else rank.size,
            "dtype": computed_in,
            "weights": args.weights,
            "document_tokens": wim.plan.document_tokens,
            "peak_device_bytes": peak_bytes(device),
            "settings": asdict(settings),
            "shortages": wim.plan.shortages(),
        }

    record = Record(Sources(document, wim.plan.chunks), about)
    answered = partial(write_report, args.report, document=document, model=where) if args.report and FIRST else None
    recorder, (stop, in_step) = Recorder(wim, answered), stepping(wim, rank)
    asking = Asking(wim, record, not args.json, stop, lambda query, events: recorder.follow(query, in_step(events)))
    prompt, asked = Prompt(asking, record, room), None
    with ctrl_c_unseen(), on_ctrl_c(unheeded if args.interactive else signal.default_int_handler):
        for query in queries:
            asked = asking.ask(query, returns=args.interactive, review=prompt.review if args.review else None)
        if target is not None:
            print(f"target: {printable(target)}", file=sys.stderr)
        if args.interactive:
            prompt.run(asked)
    if rank is not None:
        rank.finish()
    if args.json:
        print(record.json(ascii_only=(sys.stdout.encoding or "utf-8").lower() not in ("utf-8", "utf8")))


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    leave(main)
