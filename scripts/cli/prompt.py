"""The prompt: a person asks further questions, and changes the margins that an answer is made of.

A margin goes by the number of its chunk, as the lines on the screen do; several on one chunk by 7a, 7b; notes of a person's
own by the numbers after the last chunk's.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING

from cli.asking import Asked, Asking, Quit
from cli.keyboard import edit, is_typed, read_line
from cli.options import sentence
from cli.record import Record
from cli.terminal import DIM, margin_line, styled
from model.errors import DoesNotFit, InputError
from wim.events import Margin
from wim.prompts import one_line
from wim.verdict import says_nothing

if TYPE_CHECKING:  # they need torch
    from weights import Tokenizer
    from wim import WiM

QUESTION_TOKENS = (256, 128, 64, 32)  # room for a question at the prompt: the first of these that fits
NO_MARGINS = "There are no margins; /add writes one."


def with_room(opened: Callable[[list[str]], WiM], queries: list[str], tokenizer: Tokenizer) -> tuple[WiM, int]:
    """A document opened with room for further questions, and of how many tokens at most: those at the prompt come later.

    opened: opens it for a list of questions; DoesNotFit, which it raises, leads to shorter ones, at last to `queries` alone
    """
    for n_tokens in QUESTION_TOKENS:
        try:
            return opened([*queries, _question_of(n_tokens, tokenizer)]), n_tokens
        except DoesNotFit:
            if not queries and n_tokens == QUESTION_TOKENS[-1]:
                raise
    return opened(queries), max(len(tokenizer.encode(query)) for query in queries)


def _question_of(n_tokens: int, tokenizer: Tokenizer) -> str:
    """A text of at least so many tokens, and hardly more."""
    word = " why"
    n_words = n_tokens * n_tokens // len(tokenizer.encode(word * n_tokens))
    while len(tokenizer.encode(word * n_words)) < n_tokens:
        n_words += 1
    return word * n_words


class Prompt:
    """question_tokens: how long a question may be at least; InputError tells when one is too long"""

    def __init__(self, asking: Asking, record: Record, question_tokens: int):
        self.asking, self.record, self.wim, self.question_tokens = asking, record, asking.wim, question_tokens
        self.asked: Asked | None = None
        self.margins: list[Margin] = []
        self.saved: set[Path] = set()
        self.commands: dict[str, tuple[Callable[[str], object], str, str]] = {
            "margins": (self._list, "", "list the margins; those with ✓ are what the answer is made of"),
            "drop": (self._drop, "N …", "leave margins out: /drop 7, /drop 3-5 7b, /drop all"),
            "keep": (self._keep, "N …", "take them in, whatever their verdict"),
            "edit": (self._edit, "N [TEXT]", "change a margin, in $EDITOR or here, or to TEXT"),
            "add": (self._add, "TEXT", "add a note of your own"),
            "again": (self._again, "", "answer anew from the margins as they are now; none is written again"),
            "save": (self._save, "FILE", "write all questions, answers and margins so far as JSON"),
            "quit": (self._quit, "", "end; so does Ctrl-D"),
            "help": (self._help, "", "list these commands"),
        }

    def run(self, asked: Asked | None) -> None:
        """Until the person leaves. asked: the question that has been answered already"""
        self._take(asked)
        some = f"a question (of up to {self.question_tokens} tokens)"
        tell(f"Type {some}, or /help. Ctrl-C stops what runs and comes back here." if is_typed() else "")
        while (line := self._line("> ")) is not None:
            if line.startswith("/"):
                if self._heed(line) == "quit":
                    return
            elif line.strip():
                self._try(lambda line=line: self._take(self.asking.ask(line.strip(), returns=True)))

    def review(self, margins: list[Margin]) -> None:
        """Before an answer: the margins may be changed. An empty line, or /again, returns to have it written.

        Raises Quit, which is a KeyboardInterrupt, at /quit.
        """
        self.margins = margins
        self._list("")
        tell("Before the answer: /drop, /keep, /edit, /add, or /help; Enter answers." if is_typed() else "")
        while (line := self._line("review> ")) is not None and line.strip() not in ("", "/again"):
            if not line.startswith("/"):
                tell("A question has its turn after this answer; /help lists the commands, Enter answers.")
            elif self._heed(line) == "quit":
                raise Quit

    def _line(self, prompt: str) -> str | None:
        while True:
            try:
                return read_line(prompt)
            except KeyboardInterrupt:  # as in a shell: another line
                print(file=sys.stderr)

    def _heed(self, line: str) -> str:
        """Carry out a command; returns its name, or nothing for one that there is not."""
        name, _, argument = line[1:].strip().partition(" ")
        if name not in self.commands:
            tell(f"There is no /{sentence(name)}; /help lists the commands.")
            return ""
        if argument.strip() and not self.commands[name][1]:
            tell(f"/{name} takes nothing behind it; leave out {sentence(argument.strip())}.")
            return ""
        self._try(lambda: self.commands[name][0](argument.strip()))
        return name

    def _try(self, work: Callable[[], object]) -> None:
        """What cannot be done is said, and the prompt goes on."""
        try:
            work()
        except InputError as error:
            tell(f"error: {sentence(str(error))}")

    def _take(self, asked: Asked | None) -> None:
        self.asked = asked
        self.margins = asked.margins if asked is not None else []
        if asked is not None and asked.done is None and self.wim.desk.chunk_ends:
            tell("/again answers from what there is; the same question once more goes on.")

    # Commands -----------------------------------------------------------------------------------------------------------

    def _list(self, argument: str) -> None:
        """All margins, those that say nothing in one line."""
        if not self.margins:
            raise InputError(NO_MARGINS)
        empty = []
        for label, margin in self._labelled().items():
            if says_nothing(margin.text) and not margin.relevant:
                empty.append(label)
            else:
                self._show(label, margin)
        if empty:
            tell(styled(f"nothing: {', '.join(_runs(empty))}", DIM))

    def _drop(self, argument: str) -> None:
        self._mark(argument, False)

    def _keep(self, argument: str) -> None:
        self._mark(argument, True)

    def _edit(self, argument: str) -> None:
        number, _, text = argument.partition(" ")
        labels = self._chosen(number)
        if len(labels) != 1:
            raise InputError(f"/edit takes one margin, and {number} means {', '.join(labels)}; say which.")
        [(label, margin)] = labels.items()
        if (new := text.strip() or edit(one_line(margin.text))) is not None and one_line(new) != one_line(margin.text):
            margin.rewrite(self._checked(new))
        self._show(label, margin)

    def _add(self, argument: str) -> None:
        if not self.wim.desk.chunk_ends:
            raise InputError("Nothing has been read yet; ask a question.")
        last = self.wim.plan.chunks[len(self.wim.desk.chunk_ends) - 1]
        self.margins.append(margin := Margin.added(last, self._checked(argument)))
        self._show([*self._labelled()][-1], margin)

    def _again(self, argument: str) -> None:
        if self.asked is None or not self.wim.desk.chunk_ends:
            raise InputError("Nothing has been asked yet; type a question.")
        self._take(self.asking.again(self.asked))

    def _save(self, argument: str) -> None:
        if not argument:
            raise InputError("/save needs a file; write its path behind it.")
        path = Path(argument).expanduser()
        if path.exists() and path not in self.saved:
            raise InputError(f"The file {argument} is there already; give another path.")
        try:
            path.write_text(self.record.json() + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"{argument} cannot be written ({error.strerror}); give another path.") from None
        self.saved.add(path)
        n = len(self.record.results)
        tell(f"{n} answer{'s' * (n != 1)} saved in {argument}")

    def _quit(self, argument: str) -> None:
        pass

    def _help(self, argument: str) -> None:
        usages = {f"/{name} {operands}".strip(): about for name, (_, operands, about) in self.commands.items()}
        for usage, about in usages.items():
            tell(f"{usage:<16} {about}")
        tell("Anything else is a question; the document is not read again for it.")

    # Margins and their numbers ------------------------------------------------------------------------------------------

    def _mark(self, argument: str, relevant: bool) -> None:
        chosen = self._chosen(argument)
        for label, margin in chosen.items():
            margin.relevant = relevant
            self._show(label, margin)

    def _labelled(self) -> dict[str, Margin]:
        """The margins by what a person calls them."""
        labels, n_added = {}, 0
        on_chunk = Counter(margin.chunk for margin in self.margins if not margin.by_hand)
        seen: Counter[int] = Counter()
        for margin in self.margins:
            if margin.by_hand:
                n_added += 1
                labels[str(len(self.wim.plan.chunks) + n_added)] = margin
            else:
                letter = _letters(seen[margin.chunk]) if on_chunk[margin.chunk] > 1 else ""
                seen[margin.chunk] += 1
                labels[f"{margin.chunk + 1}{letter}"] = margin
        return labels

    def _chosen(self, argument: str) -> dict[str, Margin]:
        """The margins that numbers mean: 7, all of 7a and 7b, 3-5, all. Raises InputError where there is none."""
        labelled, chosen = self._labelled(), {}
        if not labelled:
            raise InputError(NO_MARGINS)
        words = argument.replace(",", " ").split()
        if not words:
            raise InputError("Which margins? Write their numbers behind the command, as /margins lists them.")
        for word in words:
            numbers = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", word)
            first, last = (int(numbers[1]), int(numbers[2] or numbers[1])) if numbers else (0, -1)
            found = [
                label for label in labelled if word in (label, "all") or first <= int(label.rstrip(ascii_lowercase)) <= last
            ]
            if not found:
                raise InputError(f"There is no margin {word}; /margins lists them.")
            chosen |= {label: labelled[label] for label in found}
        return chosen

    def _checked(self, text: str) -> str:
        """A person's text for a margin, on one line. Raises InputError for one that is empty, or has no room as a note."""
        text, most = one_line(text), self.wim.settings.margin_tokens
        if not text:
            raise InputError("The note is empty; write some words, or /drop it.")
        if (n_tokens := len(self.wim.prompts.tokenizer.encode(text))) > most:
            raise InputError(f"The note has {n_tokens} tokens and may have {most}; shorten it.")
        return text

    def _show(self, label: str, margin: Margin) -> None:
        tell(f"{label:>4} {margin_line(margin, self.record.sources)}")


def tell(text: str) -> None:
    if text:
        print(text, file=sys.stderr)


def _letters(n: int) -> str:
    return (_letters(n // 26 - 1) if n >= 26 else "") + ascii_lowercase[n % 26]


def _runs(labels: list[str]) -> list[str]:
    """Numbers in a row as one range."""
    runs: list[list[str]] = []
    for label in labels:
        if runs and label.isdecimal() and runs[-1][-1].isdecimal() and int(label) == int(runs[-1][-1]) + 1:
            runs[-1].append(label)
        else:
            runs.append([label])
    return [run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
