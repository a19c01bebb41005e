"""The text that facts are hidden in: sentences of books from a folder, or generated prose.

Every sentence carries the white space that follows it (one space, or a blank line at the end of a paragraph), so
joining consecutive sentences with nothing in between is the text again.
"""

from __future__ import annotations

import os
import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

from texts import read_text

from model.errors import InputError
from tasks.needles import NEEDLE
from tasks.prose import prose
from tasks.sentences import split_sentences
from tasks.story import STATEMENT


class Background:
    """Sentences to hide facts in, split once; `passage` then takes a slice.

    sentences: in order, each with the white space that follows it; those that look like a fact are dropped
    Raises InputError when no sentence is left.
    """

    def __init__(self, sentences: Sequence[str]):
        self.sentences = [s for s in sentences if not (STATEMENT.search(s) or NEEDLE.search(s))]
        if not self.sentences:
            raise InputError("The background has no sentences; give text with at least one sentence.")
        self._ends = list(accumulate(map(len, self.sentences)))  # characters up to and with each sentence

    @property
    def n_chars(self) -> int:
        return self._ends[-1]

    @classmethod
    def from_folder(cls, path: str | Path, files: Iterable[str] | None = None) -> Background:
        """Read the .txt files of a folder.

        files: the names of those to read, so that training and test can use different books; None for all
        Raises InputError when the folder or a file is missing, holds no text, or is not UTF-8.
        """
        paths = text_files(path) if files is None else [Path(path) / name for name in files]
        sentences: list[str] = []
        for file in paths:
            found = split_sentences(read_text(file, "The background file"))
            if not found:
                raise InputError(f"The background file {str(file)!r} holds no text; remove it or put text there.")
            sentences += found
        return cls(sentences)

    @classmethod
    def generated(cls, seed: int = 0, n_sentences: int = 20_000) -> Background:
        """Built-in prose from a grammar, about 1.4 million characters by default: nothing to download."""
        return cls(prose(random.Random(f"prose-{seed}"), n_sentences))

    def passage(self, rng: random.Random, n_chars: int) -> list[str]:
        """Consecutive sentences from a random place, the fewest that hold `n_chars` characters.

        Where more is asked for than there is, the background starts over as often as needed.
        """
        ends = self._ends
        rounds, n_chars = divmod(max(n_chars, 0), ends[-1])
        last_start = bisect_left(ends, ends[-1] - n_chars + 1)  # a later start would run over the end
        first = rng.randrange(last_start + 1) if last_start < len(ends) else 0
        before = ends[first - 1] if first else 0
        stop = bisect_left(ends, before + n_chars, lo=first) + 1 if n_chars else first
        if not rounds:
            return self.sentences[first:stop]
        whole = self.sentences[first:] + self.sentences[:first]
        return whole * rounds + self.sentences[first:stop]


def text_files(path: str | Path) -> list[Path]:
    """The .txt files of a folder, in the order of their names. Raises InputError where there are none."""
    folder = Path(path)
    if not os.path.isdir(folder):  # a name too long for a path is none either
        raise InputError(f"The background folder {str(folder)!r} is not a folder; give one that holds .txt files.")
    if not (paths := sorted(folder.glob("*.txt"))):
        raise InputError(f"No .txt files to read in the background folder {str(folder)!r}; put some text there.")
    return paths
