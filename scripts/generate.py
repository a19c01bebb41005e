"""Answer a question about a long document, with margins written on the way.

    python scripts/generate.py                                      the demo checkpoint and a demo document
    python scripts/generate.py --model meta-llama/Llama-3.1-8B-Instruct --context book.txt --query "Who …?"
    pdftotext paper.pdf - | python scripts/generate.py --query "What …?"

The answer goes to stdout, everything else to stderr. At Ctrl-C the model reads no further chunk and answers from what it
has read; a second one, or one during the answer, quits.
"""

from __future__ import annotations

import cli.start  # noqa: F401  # isort: skip  (first: from here on, Ctrl-C gives no traceback)
import argparse
import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cli.documents import Document, read_document, read_piped
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
from cli.ranks import join, leave, together
from cli.sources import Place, Sources
from cli.start import FIRST, clear, loading_libraries, say
from cli.terminal import Terminal, printable
from cli.weights_bar import WeightsBar
from texts import read_text

from model import InputError
from wim.events import AnswerToken, ChunkJudged, ChunkRead, Done, MarginDone
from wim.settings import PATTERNS, Settings

if TYPE_CHECKING:  # what needs torch is imported where it is used: --help does not wait for it
    from model.parallel import Rank
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
    add("--json", action="store_true", help="print one JSON object on stdout instead")
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
    if args.context is not None and not args.query:
        raise InputError("--context needs a question; add --query.")
    document = read_document(args.context) if args.context is not None else read_piped()
    if document is None:
        document = Document(DEMO_DOCUMENT.read_text(encoding="utf-8"), DEMO_DOCUMENT.name)
        return document, args.query or [DEMO_QUERY], None
    if not args.query:
        raise InputError("The standard input brings a document and needs a question; add --query.")
    return document, args.query, None


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


def run(args: argparse.Namespace) -> None:
    show = not args.json
    check_options(args, args.pattern)
    document, queries, target = read_input(args) if FIRST else (None, [], None)
    for query in queries:
        if not query.strip():
            raise InputError("The question is empty; give a text with --query.")
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
    wim = open_document(
        checkpoint,
        document.text,
        queries,
        settings,
        prompts=prompts,
        classifier=classifier,
        device=device,
        dtype=dtype,
        progress=WeightsBar() if sys.stderr.isatty() else None,
        compiled=args.compile,
        rank=rank,
    )
    clear()
    if show:
        size = f"{wim.plan.document_tokens:,} tokens, {(n_chunks := len(wim.plan.chunks)):,} chunk{'s' * (n_chunks != 1)}"
        cards = f"{rank.size} x {device.type}" if rank is not None else device
        where = f"{checkpoint.name} on {cards}, {str(dtype).removeprefix('torch.')}"
        print(printable(f"document: {document}, {size} · {where}"), file=sys.stderr)
        for sentence in wim.plan.shortages():
            print(sentence, file=sys.stderr)
    sources = Sources(document, wim.plan.chunks)
    with together(rank):
        results = [ask(wim, query, sources, show, rank) for query in queries]
    if args.json:
        runs = [result_object(query, sources, *result) for query, result in zip(queries, results, strict=True)]
        about = {
            "target": target,
            "model": checkpoint.name,
            "classifier": args.classifier,
            "device": str(device),
            **({} if rank is None else {"processes": rank.size}),
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


def ask(wim: WiM, query: str, sources: Sources, show: bool, rank: Rank | None = None) -> tuple[Done, list[ChunkJudged]]:
    """Answer one question; a first Ctrl-C stops the reading, a later one quits. Returns the end, and what `rag` judged.

    rank: of several processes; they stop where the first does
    """
    answering, interrupted, judged = False, wim.stopped, []

    def interrupt(signum: int, frame: object) -> None:
        nonlocal interrupted
        if interrupted or answering:
            raise KeyboardInterrupt
        interrupted = True
        if rank is None:
            wim.stop()
        print("\nReading stops after this chunk. Ctrl-C again quits.", file=sys.stderr)

    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        if show:
            print(f"question: {printable(query)}", file=sys.stderr)
        terminal = Terminal(wim.plan.document_tokens, sources) if show else None
        for event in wim.ask(query):
            answering = isinstance(event, AnswerToken)
            if rank is not None and isinstance(event, (ChunkRead, ChunkJudged, MarginDone)) and rank.agreed(interrupted):
                wim.stop()
            if isinstance(event, ChunkJudged):
                judged.append(event)
            if terminal is not None:
                terminal.show(event)
        return event, judged
    finally:
        signal.signal(signal.SIGINT, previous)


def result_object(query: str, sources: Sources, done: Done, judged: list[ChunkJudged]) -> dict:
    def listed(places: list[Place]) -> dict:
        return {"sources": [place._asdict() for place in places]}

    verdicts = [
        {"chunk": one.chunk, "relevant": one.relevant, "probability": one.probability} | listed(sources.of_chunk(one.chunk))
        for one in judged
    ]
    return {
        "query": query,
        "answer": done.answer,
        "margins": [asdict(margin) | listed(sources.of(margin)) for margin in done.margins],
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
    leave(main())
