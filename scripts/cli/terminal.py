"""Show the events of a run to a person: a progress bar and the margins on stderr, the answer on stdout."""

from __future__ import annotations

import sys

from tqdm import tqdm

from cli.sources import Sources
from wim.events import AnswerToken, ChunkJudged, ChunkRead, Done, Event, Margin, MarginDone, MarginToken, Rollback


class Terminal:
    """Follows one question. On a terminal, a margin that is written alone appears as it is written, and then its rollback.

    document_tokens: the length of the progress bar
    sources: of the document; None for a margin's chunk alone
    """

    def __init__(self, document_tokens: int, sources: Sources | None = None):
        self.sources = sources
        self.live = sys.stderr.isatty()
        self.bar = tqdm(
            total=document_tokens,
            unit=" tokens",
            desc="reading",
            file=sys.stderr,
            disable=not self.live,
            leave=False,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} tokens {rate_fmt}",
        )
        self.open_line: int | None = None  # the chunk whose margin is being written on the last line
        self.forgotten: Rollback | None = None  # after the chunk that was read last; told behind the verdict
        self.answering = False

    def show(self, event: Event) -> None:
        match event:
            case ChunkRead(tokens=tokens):
                self.bar.update(tokens)
                self.forgotten = None
            case ChunkJudged(chunk=chunk, relevant=relevant, probability=probability):
                self.bar.update(event.tokens)
                self._line(f"{self._heading(chunk)}{_verdict(relevant, probability)}")
            case MarginToken(chunk=chunk, text=text) if self.live:
                self._grow(chunk, text)
            case Rollback():
                self.forgotten = event
            case MarginDone(margin=margin):
                self._finish(margin)
            case AnswerToken(text=text):
                if not self.answering:
                    self.answering = True
                    self.bar.close()
                    text = text.lstrip()
                print(printable(text) if sys.stdout.isatty() else text, end="", flush=True)
            case Done():
                self.bar.close()
                print(flush=True)
                if not self.answering:
                    print("(no answer: the model wrote nothing that is text)", file=sys.stderr)
                if event.left_out:
                    chunks = ", ".join(str(margin.chunk + 1) for margin in event.left_out)
                    print(f"The last prompt had no room for the margins on these chunks: {chunks}.", file=sys.stderr)
                print(summary(event), file=sys.stderr)

    def _grow(self, chunk: int, text: str) -> None:
        if self.open_line is None:
            self.bar.clear()
            self.open_line = chunk
            print(self._heading(chunk), end="", file=sys.stderr)
            text = text.lstrip()
        if self.open_line == chunk:  # margins of a window grow side by side: only the first is shown growing
            print(printable(" ".join(text.split("\n"))), end="", file=sys.stderr, flush=True)

    def _finish(self, margin: Margin) -> None:
        heading, verdict = self._heading(margin.chunk, margin), f"  {_verdict(margin.relevant, margin.certainty)}"
        if self.open_line == margin.chunk:
            quoted = "" if heading == self._heading(margin.chunk) else f"  {printable(self.sources.name(margin))}"
            print(f"{quoted}{verdict}{self._tell_rollback()}", file=sys.stderr)
            self.open_line = None
            self.bar.refresh()
        else:
            self._line(heading + " ".join(margin.text.split()), verdict + self._tell_rollback())

    def _heading(self, chunk: int, margin: Margin | None = None) -> str:
        """What a line about a chunk, or about one of its margins, begins with; its file and lines where they are known."""
        place = ""
        if self.sources is not None:
            place = self.sources.named(self.sources.of_chunk(chunk) if margin is None else self.sources.of(margin))
        return printable(f"[chunk {chunk + 1} · {place}] " if place else f"[chunk {chunk + 1}] ")

    def _tell_rollback(self) -> str:
        """On a terminal, dim: the margin's tokens have left the cache. Margins of a window are never part of it."""
        rollback, self.forgotten = self.forgotten, None
        if rollback is None or not self.live:
            return ""
        return f"  \x1b[2mcache {rollback.old_length} -> {rollback.new_length}\x1b[0m"

    def _line(self, text: str, ending: str = "") -> None:
        """A line above the progress bar; `ending` is ours and may hold control characters."""
        tqdm.write(printable(text) + ending, file=sys.stderr)


def printable(text: str) -> str:
    """Text is data to a terminal too: what a model copies from a document must not move the cursor or worse."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _verdict(relevant: bool, probability: float | None) -> str:
    mark = "✓ relevant" if relevant else "✗ not relevant"
    return mark if probability is None else f"{mark} ({probability:.2f})"


def summary(done: Done) -> str:
    """One line of counts and seconds. Those of margins and answer hold the reading of their prompts as well."""
    parts = []
    counted = {
        "document": ("prefill", "read"),
        "margins": ("margins", "written"),
        "verdicts": ("verdicts", "read"),
        "answer": ("answer", "written"),
    }
    for tokens, (phase, done_to_them) in counted.items():
        if n_tokens := done.tokens.get(tokens):
            unit = "token" if n_tokens == 1 else "tokens"
            parts.append(f"{tokens}: {n_tokens} {unit} {done_to_them} in {done.seconds.get(phase, 0):.2f} s")
    return " · ".join(parts)
