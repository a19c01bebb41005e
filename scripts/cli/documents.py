"""The document that is asked about: a text file, several, folders of them, or what is piped in."""

from __future__ import annotations

import os
import select
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from texts import PDF, read_stdin, read_text

from cli.start import clear, say
from model.errors import InputError

SNIFFED = 8192  # bytes at a file's beginning in which a zero byte tells that it is no text
STDIN = "stdin"  # the name of what is piped in
MOST_NAMED = 3  # paths in a line about the document
PATIENCE = 2.0  # seconds in which an idle pipe may begin to bring something


class Part(NamedTuple):
    """A file of a document, by its path: the characters [start, end) of the document's text."""

    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Document:
    """A text, and where it is from.

    name: the paths as they were given
    files: the files it consists of; None for one that was given by its own path
    skipped: how many hidden and binary files of the folders were not read
    """

    text: str
    name: str
    files: tuple[Part, ...] | None = None
    skipped: int = 0

    @property
    def parts(self) -> tuple[Part, ...]:
        """Its files, also where it is one."""
        return (Part(self.name, 0, len(self.text)),) if self.files is None else self.files

    @property
    def headings(self) -> list[tuple[int, int]]:
        """The characters [start, end) before each file that are in no file."""
        ends = [0, *(part.end for part in self.parts)]
        return [(end, part.start) for end, part in zip(ends, self.parts, strict=False)]

    @property
    def piped(self) -> bool:
        """Whether the standard input is one of them."""
        return any(part.name == STDIN for part in self.parts)

    def __str__(self) -> str:
        if self.files is None:
            return self.name
        skipped = f", {self.skipped} hidden or binary skipped" if self.skipped else ""
        return f"{self.name} ({len(self.files)} file{'s' * (len(self.files) != 1)}{skipped})"


def read_document(paths: list[str]) -> Document:
    """The text of one file as it is; of several files, or a folder, each headed by its path. `-` is stdin.

    Raises InputError for what is not there or is no text, and for folders without text.
    """
    if len(paths) == 1 and not _is_folder(paths[0]):
        [(name, text)] = _read_file(paths[0])
        return Document(text, name)
    texts: list[tuple[str, str]] = []
    skipped = 0
    for path in paths:
        if _is_folder(path):
            found, n_skipped = _read_folder(Path(path))
            skipped += n_skipped
        else:
            found = _read_file(path)
        texts += found
    named = paths if len(paths) <= MOST_NAMED else [*paths[: MOST_NAMED - 1], f"{len(paths) - MOST_NAMED + 1} more"]
    pieces, files, end = [], [], 0
    for name, text in texts:
        heading = "\n\n" * bool(files) + f"File: {name}\n\n"
        start, end = end + len(heading), end + len(heading) + len(text)
        pieces += [heading, text]
        files.append(Part(name, start, end))
    return Document("".join(pieces), ", ".join(named), tuple(files), skipped)


def read_piped() -> Document | None:
    """What is piped in, or comes from `< file`. None for a terminal, and where nothing comes."""
    try:
        if sys.stdin.isatty():
            return None
        say("waiting for the standard input")
        readable, _, _ = select.select([sys.stdin.fileno()], [], [], PATIENCE)
    except (AttributeError, OSError, ValueError):  # closed, or no file at all
        return None
    clear()
    if not readable:  # programs that start others may give them a pipe that stays open
        print("Nothing comes from the standard input, so it is not read; --context - waits for it.", file=sys.stderr)
        return None
    [(name, text)] = _read_file("-")
    if text.strip(" \t\r\n"):  # the pages of a scanned PDF are form feeds alone: a document, though an empty one
        return Document(text, name)
    if not stat.S_ISCHR(os.fstat(sys.stdin.fileno()).st_mode):  # as /dev/null, which nobody takes for a document
        print("The standard input is empty, so it is not read; --context names a document.", file=sys.stderr)
    return None


def check_paths(paths: list[str]) -> None:
    """Raises InputError for one that leads nowhere, before anything is read."""
    for path in paths:
        if path != "-" and not os.path.exists(path):
            read_text(path)  # which says why


def _is_folder(path: str) -> bool:
    return bool(path) and path != "-" and os.path.isdir(path)


def _read_file(path: str) -> list[tuple[str, str]]:
    """The name and the text of a file, in a list of one."""
    if path != "-":
        return [(path, _checked(read_text(path), f"The file {path}"))]
    say("reading the standard input")
    return [(STDIN, _checked(read_stdin(), "The standard input"))]


def _checked(text: str, source: str) -> str:
    """Raises InputError for what happens to be UTF-8 and is no text, as within folders."""
    if "\0" in text[:SNIFFED]:
        raise InputError(f"{source} is binary (it holds zero bytes); convert it to text first.")
    return text


def _read_folder(folder: Path) -> tuple[list[tuple[str, str]], int]:
    """Names and texts of its files in the order of their paths, without blank ones; and how many were skipped."""
    say("reading the folder")
    texts, skipped = [], 0
    for path in _listed_by_git(folder) or sorted(_walked(folder)):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        text = None if hidden else _text_of(path)
        if text is None:
            skipped += 1
        elif text.strip():
            texts.append((str(path), text))
    if not texts:
        raise InputError(f"The folder {folder} has no text files but hidden or empty ones; give another path.")
    return texts, skipped


def _listed_by_git(folder: Path) -> list[Path]:
    """The files that git tracks or would track, sorted; none where there is no git, or the folder is none of its own."""
    # A repository's own settings may name a program to run as fsmonitor: it came with the documents, so it is not to run.
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", "ls-files", "-z"]
    command += ["--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    names = {os.fsdecode(name) for name in listed.split(b"\0") if name}
    # A repository within this one is listed as a folder.
    found = [[path] if path.is_file() else list(_walked(path)) for path in (folder / name for name in names)]
    return sorted(path for paths in found for path in paths)


def _walked(folder: Path) -> Iterator[Path]:
    """All files below a folder, and its hidden folders, which are not looked into."""
    for parent, folders, files in os.walk(folder):
        yield from (Path(parent, name) for name in folders if name.startswith("."))
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (path for name in files if (path := Path(parent, name)).is_file())  # no pipe, which has no end


def _text_of(path: Path) -> str | None:
    """The text of a file of a folder; None for one that holds something else."""
    try:
        with path.open("rb") as file:
            start = file.read(SNIFFED)
            binary = b"\0" in start or start.startswith(PDF)
            return None if binary else (start + file.read()).decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    except OSError as error:
        raise InputError(f"The file {path} cannot be read ({error.strerror}); check its path.") from None
