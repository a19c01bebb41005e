"""Answer a question about a long document, with margins written on the way.

    python scripts/generate.py                                      the demo checkpoint and a demo document
    python scripts/generate.py --model meta-llama/Llama-3.1-8B-Instruct --context book.txt --query "Who …?"

The answer goes to stdout, everything else to stderr. Ctrl-C while the document is read answers from what has been read; a
second one quits.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import cli.start  # noqa: F401  (before torch)
from cli.options import (
    Parser,
    add_checkpoint_options,
    add_reading_options,
    exit_code,
    open_checkpoints,
    reading_prompts,
    reading_settings,
)
from cli.terminal import Terminal, printable
from cli.weights_bar import WeightsBar
from texts import read_stdin, read_text

from model import InputError
from weights.device import peak_bytes, pick_device, pick_dtype
from wim.events import AnswerToken, ChunkJudged, Done
from wim.loop import WiM
from wim.reader import open_document
from wim.settings import PATTERNS, Settings

DEMO_DOCUMENT = Path(__file__).with_name("demo.txt")
DEMO_QUERY = "Where is the lamp?"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--context", metavar="PATH", help="the document, a UTF-8 text file; - reads stdin")
    add("--query", action="append", metavar="TEXT", help="the question; give several to ask them one after the other")
    add("--example", metavar="FILE", help="a JSON file with `context`, `query` and optionally `target`")
    add("--pattern", choices=PATTERNS, default=Settings.pattern)
    add("--json", action="store_true", help="print one JSON object on stdout instead")
    add_checkpoint_options(parser)
    add_reading_options(parser, margin_window="1")
    return parser.parse_args(arguments)


def read_input(args: argparse.Namespace) -> tuple[str, list[str], str | None]:
    """The document, the questions, and the target if an example gives one.

    Raises InputError for files that are not there, not text, or not an example.
    """
    if args.example is not None:
        if args.context is not None or args.query:
            raise InputError("--example brings its own document and question; leave out --context and --query.")
        return read_example(args.example)
    if args.context is not None and not args.query:
        raise InputError("--context needs a question; add --query.")
    if args.context is None:
        return DEMO_DOCUMENT.read_text(encoding="utf-8"), args.query or [DEMO_QUERY], None
    return read_stdin() if args.context == "-" else read_text(args.context), args.query, None


def read_example(path: str) -> tuple[str, list[str], str | None]:
    text = read_text(path, "The example")
    try:
        example = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"The example {path} is not JSON ({error}); it should be an object.") from None
    for key in ("context", "query"):
        if not isinstance(example, dict) or not isinstance(example.get(key), str):
            raise InputError(f"The example {path} has no text under {key!r}; it needs `context` and `query`.")
    target = example.get("target")
    return example["context"], [example["query"]], None if target is None else str(target)


def run(args: argparse.Namespace) -> None:
    device, show = pick_device(args.device), not args.json
    document, queries, target = read_input(args)
    for query in queries:
        if not query.strip():
            raise InputError("The question is empty; give a text with --query.")
    checkpoint, classifier = open_checkpoints(args)
    settings, prompts = reading_settings(args, checkpoint, args.pattern), reading_prompts(args, checkpoint)
    dtype = pick_dtype(args.dtype, device)
    wim = open_document(
        checkpoint,
        document,
        queries,
        settings,
        prompts=prompts,
        classifier=classifier,
        device=device,
        dtype=dtype,
        progress=WeightsBar() if show and sys.stderr.isatty() else None,
        compiled=args.compile,
    )
    if show:
        for sentence in wim.plan.shortages():
            print(sentence, file=sys.stderr)
    results = [ask(wim, query, show) for query in queries]
    if args.json:
        runs = [result_object(query, *result) for query, result in zip(queries, results, strict=True)]
        about = {
            "target": target,
            "model": checkpoint.name,
            "classifier": args.classifier,
            "device": str(device),
            "dtype": str(dtype).removeprefix("torch."),
            "document_tokens": wim.plan.document_tokens,
            "peak_device_bytes": peak_bytes(device),
            "settings": asdict(settings),
            "shortages": wim.plan.shortages(),
        }
        # The result of one question is the object itself; those of several are a list in it.
        result = {**(runs[0] if len(runs) == 1 else {"results": runs}), **about}
        ascii_only = (sys.stdout.encoding or "utf-8").lower() not in ("utf-8", "utf8")
        # Half a character (from an argument, or an escape in an example) is nothing that can be printed.
        print(json.dumps(result, ensure_ascii=ascii_only, indent=1).encode("utf-8", "replace").decode("utf-8"))
    elif target is not None:
        print(f"target: {printable(target)}", file=sys.stderr)


def ask(wim: WiM, query: str, show: bool) -> tuple[Done, list[ChunkJudged]]:
    """Answer one question; a first Ctrl-C stops the reading, a later one quits. Returns the end, and what `rag` judged."""
    answering, judged = False, []

    def interrupt(signum: int, frame: object) -> None:
        if wim.stopped or answering:
            raise KeyboardInterrupt
        wim.stop()
        print("\nReading stops after this chunk. Ctrl-C again quits.", file=sys.stderr)

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        terminal = Terminal(wim.plan.document_tokens) if show else None
        if show:
            print(f"question: {printable(query)}", file=sys.stderr)
        for event in wim.ask(query):
            answering = isinstance(event, AnswerToken)
            if isinstance(event, ChunkJudged):
                judged.append(event)
            if terminal is not None:
                terminal.show(event)
        return event, judged
    finally:
        signal.signal(signal.SIGINT, previous)


def result_object(query: str, done: Done, judged: list[ChunkJudged]) -> dict:
    verdicts = [{"chunk": one.chunk, "relevant": one.relevant, "probability": one.probability} for one in judged]
    return {
        "query": query,
        "answer": done.answer,
        "margins": [asdict(margin) for margin in done.margins],
        "left_out": [margin.chunk for margin in done.left_out],  # of the last prompt, which had no room for them
        **({"chunks": verdicts} if verdicts else {}),  # pattern `rag`
        "chunks_read": done.chunks_read,
        "tokens": done.tokens,
        "seconds": {phase: round(seconds, 4) for phase, seconds in done.seconds.items()},
    }


def main(arguments: list[str] | None = None) -> int:
    args = parse_arguments(arguments)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
