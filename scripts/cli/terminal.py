"""Show the events of a run to a person: a progress bar and the margins on stderr, the answer on stdout."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence

from tqdm import tqdm
from tqdm.utils import disp_len, disp_trim

from cli.sources import Place, Sources
from cli.start import clear
from wim.events import AnswerToken, ChunkJudged, ChunkRead, Done, Event, Margin, MarginDone, MarginToken, Noted, Rollback
from wim.verdict import says_nothing

DIM, GREEN = "2", "32"  # of a terminal's text


class Terminal:
    """Follows one question. On a terminal, a margin that is written alone appears as it is written.

    Its line, once it is done, tells the rollback that forgot it, too. Runs of chunks that brought nothing share one line.

    document_tokens: the length of the progress bar
    sources: of the document; None for the numbers of chunks alone
    doing: what the model does first: `reading` or `margins`, which a bar follows; anything else is just said
    chunks: from how many the answer should come; 0 where fewer are no reason to tell
    answers: whether to print the answer
    """

    def __init__(
        self,
        document_tokens: int,
        sources: Sources | None = None,
        doing: str = "reading",
        chunks: int = 0,
        answers: bool = True,
    ):
        self.sources, self.chunks, self.answers = sources, chunks, answers
        self.live, measured = sys.stderr.isatty(), doing in ("reading", "margins")
        self.bar = tqdm(
            total=document_tokens,
            desc=doing,
            file=sys.stderr,
            disable=not (self.live and measured),
            leave=False,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} tokens, {remaining} left",
        )
        self.read: set[int] = set()  # chunks, for this question
        self.growing: int | None = None  # the chunk whose margin is being written on the last line
        self.grown = ""  # what it says so far
        self.nothing: list[int] = []  # a run of chunks that brought nothing, not told yet
        self.likeliest: float | None = None  # the highest probability among them
        self.forgotten: Rollback | None = None  # after the chunk that was read last; told behind the verdict
        self.notes: list[str] = []  # to be told when the last line is done
        self.answering = False
        if not measured:
            self._status(f"{doing} …")

    def show(self, event: Event) -> None:
        match event:
            case ChunkRead(chunk=chunk, tokens=tokens):
                self.read.add(chunk)
                self._advance("reading", tokens)
                self.forgotten = None
            case ChunkJudged():
                self._judged(event)
            case MarginToken(chunk=chunk, text=text) if self.live:
                self._grow(chunk, text)
            case Rollback():
                self.forgotten = event
            case MarginDone(margin=margin):
                self._finish(margin)
            case Noted():
                self._tell_nothing()
                self.bar.close()
                self._status("answering …")
            case AnswerToken(text=text):
                self._answer(text)
            case Done():
                self._done(event)

    def note(self, sentence: str) -> None:
        """Tell something on a line of its own, where a margin is being written behind that. A signal may call this."""
        if self.growing is None and not self.answering:
            self._line(sentence)
        else:
            self.notes.append(sentence)

    def close(self) -> None:
        """Leave a clean last line, also where the events did not come to their end."""
        self._tell_nothing()
        self.bar.close()
        if self.answering and self.answers:
            print(flush=True)
        else:
            clear()
        self.answering = False
        self._end_line()

    def _judged(self, event: ChunkJudged) -> None:
        self._advance("reading", event.tokens)
        if event.relevant:
            self._tell_nothing()
            self._line(f"{self._heading(event.chunk)}{verdict(True, event.probability)}")
        else:
            self._say_nothing_of(event.chunk, event.probability)

    def _grow(self, chunk: int, text: str) -> None:
        """On one line, which shows the end of what does not fit."""
        if self.growing is None:
            self.bar.clear()
            self.growing, self.grown = chunk, ""
        if self.growing == chunk:  # margins of a window grow side by side: only the first is shown growing
            self.grown += text
            self._status(self._heading(chunk), self.grown)

    def _finish(self, margin: Margin) -> None:
        if self.growing == margin.chunk:
            self.growing = None
            clear()
        if margin.relevant or not says_nothing(margin.text):
            self._tell_nothing()
            self._line(margin_line(margin, self.sources) + self._tell_rollback())
        else:
            self._say_nothing_of(margin.chunk)
        if margin.score is None and margin.chunk not in self.read:
            self._advance("margins", margin.end - margin.start)  # its chunk was read for an earlier question
        self._end_line()
        self.bar.refresh()

    def _advance(self, doing: str, tokens: int) -> None:
        told = f"{_numbers(self.nothing)}: nothing · " if self.nothing else ""
        self.bar.set_description_str(told + doing, refresh=False)
        self.bar.update(tokens)

    def _answer(self, text: str) -> None:
        if not self.answering:
            text = text.lstrip()
            if not text:  # such as what stands between a thought and the answer
                return
            self.close()
            self.answering = True
        if self.answers:
            print(printable(text) if sys.stdout.isatty() else text, end="", flush=True)

    def _done(self, done: Done) -> None:
        answered = self.answering
        self.close()
        if not answered:
            if self.answers:
                print(flush=True)
            print("(no answer: the model wrote no text, or nothing but a thought; see --answer-tokens)", file=sys.stderr)
        if done.left_out:
            chunks = ", ".join(str(margin.chunk + 1) for margin in done.left_out)
            print(f"The last prompt had no room for the margins on these chunks: {chunks}.", file=sys.stderr)
        short = f"answered after {done.chunks_read} of {self.chunks} chunks · " if done.chunks_read < self.chunks else ""
        print(short + summary(done), file=sys.stderr)

    def _say_nothing_of(self, chunk: int, probability: float | None = None) -> None:
        if self.nothing and chunk != self.nothing[-1] + 1:
            self._tell_nothing()
        self.nothing.append(chunk)
        self.likeliest = probability if self.likeliest is None else max(self.likeliest, probability or 0)

    def _tell_nothing(self) -> None:
        """One line about the chunks since the last find."""
        if not self.nothing:
            return
        first, last = self.nothing[0], self.nothing[-1]
        self.nothing, likeliest, self.likeliest = [], self.likeliest, None
        said = "nothing" if likeliest is None else verdict(False, likeliest, "" if first == last else "at most ")
        self._line(styled(f"{self._heading(first, last)}{said}", DIM))

    def _tell_rollback(self) -> str:
        """On a terminal, dim: the margin's tokens have left the cache. Margins of a window are never part of it."""
        rollback, self.forgotten = self.forgotten, None
        if rollback is None or not self.live:
            return ""
        return styled(f"  cache {rollback.old_length} -> {rollback.new_length}", DIM)

    def _heading(self, first: int, last: int | None = None) -> str:
        """What a line about a chunk, or about several, begins with."""
        last = first if last is None else last
        places = [] if self.sources is None else self.sources.of_chunks(first, last)
        return heading(_numbers([first, last]), places, self.sources)

    def _status(self, begin: str, text: str = "") -> None:
        """On a terminal, a line that others will replace: never longer than the terminal is wide."""
        if self.live:
            begin, text = printable(begin), printable(" ".join(text.split()))
            room = _columns() - 1 - disp_len(begin)
            if disp_len(text) > room > 1:
                text = text[1 - room :]
                while disp_len(text) > room - 1:  # some characters are two columns wide
                    text = text[1:]
                text = f"…{text}"
            clear()
            print(disp_trim(begin + text, _columns() - 1), end="", file=sys.stderr, flush=True)

    def _line(self, text: str) -> None:
        """A line above the progress bar."""
        clear()
        tqdm.write(text, file=sys.stderr)

    def _end_line(self) -> None:
        while self.notes:
            self._line(self.notes.pop(0))


def margin_line(margin: Margin, sources: Sources | None) -> str:
    """A margin, where it stands, and its verdict, on one line: one that counts in colour, others dim."""
    about = "your note" if margin.by_hand else _numbers([margin.chunk])
    begin = heading(about, [] if sources is None else sources.of(margin), sources)
    text = printable(" ".join(margin.text.split()))
    end = verdict(margin.relevant, margin.probability) if margin.score is None else looked(margin.relevant, margin.score)
    if margin.relevant:
        return f"{styled(begin, GREEN)}{text}  {styled(end, GREEN)}"
    return styled(f"{begin}{text}  {end}", DIM)


def heading(about: str, places: Sequence[Place], sources: Sources | None) -> str:
    place = sources.named(places) if places and sources is not None else ""
    return printable(f"[{about} · {place}] " if place else f"[{about}] ")


def verdict(relevant: bool, probability: float | None, about: str = "") -> str:
    mark = "✓ relevant" if relevant else "✗ not relevant"
    return mark if probability is None else f"{mark} ({about}{hundredths(probability)})"


def looked(relevant: bool, score: float) -> str:
    """Of an underlined sentence. score: its share of the document's highest, which is no probability"""
    return f"{'✓' if relevant else '✗'} looked at {'most' if score == 1 else f'({hundredths(score)} of the most)'}"


def hundredths(share: float) -> str:
    """Rounded down: what misses a threshold of 0.25 must not be shown as 0.25."""
    return f"{math.floor(share * 100 + 1e-6) / 100:.2f}"


def styled(text: str, style: str) -> str:
    """In a colour, on a terminal; nowhere else, nor where a person wants none (no-color.org)."""
    plain = not sys.stderr.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return text if plain else f"\x1b[{style}m{text}\x1b[0m"


def printable(text: str) -> str:
    """Text is data to a terminal too: what a model copies from a document must not move the cursor or worse."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


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
        seconds = done.seconds.get(phase, 0)
        looking = tokens == "margins" and seconds > 0 and any(margin.score is not None for margin in done.margins)
        if n_tokens := done.tokens.get(tokens):
            unit, more = "token" if n_tokens == 1 else "tokens", ", and underlines looked for," * looking
            parts.append(f"{tokens}: {n_tokens:,} {unit} {done_to_them}{more} in {seconds:.2f} s")
        elif looking:
            parts.append(f"underlines: looked in {seconds:.2f} s")
    return " · ".join(parts)


def _numbers(chunks: list[int]) -> str:
    """Chunks in words, as a terminal counts them: from 1."""
    first, last = chunks[0] + 1, chunks[-1] + 1
    return f"chunk {first}" if first == last else f"chunks {first}-{last}"


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (AttributeError, OSError, ValueError):
        return 80
