"""The folder that a run writes: settings.json, and answers.jsonl with a line for each question answered by a pattern.

A line is written as soon as its answer is there, so an interrupted run loses at most the one it was at; the next run with
the same settings goes on after the last line. Which tasks, lengths, patterns and how many documents were asked for may
change from run to run: none of them changes an answer.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model import InputError

Key = tuple[str, int | None, int, int, str]
AnswerRecord = dict[str, Any]
SAMPLE = 1 << 20  # bytes
# What a damaged file may raise where it is taken for a sound one.
DAMAGES = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
# What a line holds at least, with its kinds; and each entry of its lists.
FIELDS = {"task": str, "length": int | None, "document": int, "question": int, "pattern": str, "scores": dict}
VERDICT = {"relevant": bool, "probability": float | int | None, "gold": str | None, "verdict_right": bool | None}
ENTRIES = {"margins": {"text": str, "word_for_word": bool | None, **VERDICT}, "chunks": VERDICT}


def key_of(record: AnswerRecord) -> Key:
    """What tells an answer from the others: task, length, number of the document, of the question in it, and pattern."""
    return tuple(record[name] for name in ("task", "length", "document", "question", "pattern"))


class Results:
    """The answers so far, by their keys."""

    def __init__(self, folder: str | Path, settings: dict[str, Any], asked: dict[str, Any]):
        """Open or begin the folder.

        settings: all that an answer depends on
        asked: which answers this run is to give; stored beside the settings, free to change
        Raises InputError when the folder holds answers under other settings, or cannot be used.
        """
        self.folder = Path(folder)
        self.file = self.folder / "answers.jsonl"
        settings = json.loads(json.dumps(settings))  # as it will be read back
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check(settings)
            self.records = {key_of(record): record for record in self._load()}
            draft = self.folder / "settings.json.new"
            draft.write_text(json.dumps({"settings": settings, "asked": asked}, indent=1) + "\n", encoding="utf-8")
            os.replace(draft, self.folder / "settings.json")
        except OSError as error:
            raise InputError(f"{self.folder} cannot hold the results ({error.strerror}); give another --out.") from None

    def add(self, record: AnswerRecord) -> None:
        """Raises InputError when the disk is full, or the file cannot be written for another reason."""
        try:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as error:
            raise InputError(
                f"{self.file} cannot be written ({error.strerror}); mend that, and the same command goes on from here."
            ) from None
        self.records[key_of(record)] = record

    def __contains__(self, key: Key) -> bool:
        return key in self.records

    def _check(self, settings: dict[str, Any]) -> None:
        if not self.file.exists():
            return  # nothing has been answered under whatever settings may be there
        path = self.folder / "settings.json"
        if not path.exists():
            raise InputError(f"{self.file} has no settings.json beside it, so it cannot go on; give another --out.")
        try:
            stored = dict(json.loads(path.read_text(encoding="utf-8"))["settings"].items())
        except DAMAGES:
            raise InputError(f"{path} is damaged; give another --out.") from None
        names = [*settings, *(name for name in stored if name not in settings)]
        other = [name for name in names if stored.get(name) != settings.get(name)]
        if other:
            there = ", ".join(
                f"{name}: {json.dumps(stored.get(name))}, not {json.dumps(settings.get(name))}" for name in other
            )
            raise InputError(f"{self.folder} holds results of other settings ({there}); give those or another --out.")

    def _load(self) -> list[AnswerRecord]:
        if not self.file.exists():
            return []
        data = self.file.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):  # the run ended within a line
            os.truncate(self.file, whole)
        records = []
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            if (record := _answer(line)) is None:
                raise InputError(f"{self.file}, line {number}: this is no answer; remove the line.")
            records.append(record)
        return records


def _answer(line: bytes) -> AnswerRecord | None:
    """The record of a line; None where it lacks what is read off it, the key and the numbers of the tables."""
    try:
        record = json.loads(line)
        whole = (
            _holds(record, FIELDS)
            and {"score"} <= record["scores"].keys()
            and all(type(value) in (int, float) and 0 <= value <= 1 for value in record["scores"].values())
            and all(_holds(entry, kinds) for field, kinds in ENTRIES.items() for entry in record.get(field, ()))
            and all(type(record.get(name, 0)) is int for name in ("evidence", "evidence_found"))
            and isinstance(record.get("measure"), str | None)
        )
    except DAMAGES:
        return None
    return record if whole else None


def _holds(entry: dict[str, Any], kinds: dict[str, Any]) -> bool:
    """Whether an object has fields of these kinds. Raises KeyError where it lacks one. A bool is no whole number."""
    return all(
        isinstance(entry[name], kind) and (kind is bool or kind == bool | None or not isinstance(entry[name], bool))
        for name, kind in kinds.items()
    )


def fingerprint(files: Iterable[Path]) -> str:
    """A short name for what is in some files, from their names, sizes and bytes.

    Of weights only the first and last bytes count: quick for gigabytes too. Raises InputError for what cannot be read.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                digest.update(f"{path.name} {size} ".encode() + file.read(SAMPLE))
                if path.suffix == ".safetensors":
                    file.seek(max(file.tell(), size - SAMPLE))
                digest.update(file.read())
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}); check that it is a readable file.") from None
    return digest.hexdigest()[:16]
