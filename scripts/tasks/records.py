"""Records of a JSON or JSON-lines file, whose fields are checked as they are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from texts import read_text

from model.errors import InputError

KINDS = {str: "text", int: "a whole number", list: "a list", dict: "an object", bool: "true or false"}


@dataclass(frozen=True)
class Record:
    """A JSON object and where it stands ("dev.json, record 3"), for error messages."""

    value: dict[str, Any]
    where: str

    def has(self, name: str) -> bool:
        return self.value.get(name) is not None

    def get(self, *names: str, kind: type) -> Any:
        """The first of the named fields that is there; it must be of the kind.

        Raises InputError when none is there or it is null, of another kind, or its text is no valid Unicode.
        """
        name = self.name(*names)
        return checked(self.value[name], kind, f"{self.where}, field {name!r}")

    def text(self, *names: str) -> str:
        """The text of a field. Raises InputError as `get`, and when nothing is written there."""
        return filled(self.get(*names, kind=str), f"{self.where}, field {self.name(*names)!r}")

    def name(self, *names: str) -> str:
        """The first of the names that has a value. Raises InputError when none has."""
        for name in names:
            if self.has(name):
                return name
        for name in names:
            if name in self.value:
                raise InputError(f"{self.where}: the field {name!r} is null; fill it in or remove the record.")
        wanted = " or ".join(map(repr, names))
        there = ", ".join(map(repr, self.value)) or "none"
        raise InputError(f"{self.where}: the field {wanted} is missing (fields there: {there}); add it.")

    def children(self, name: str) -> list[Record]:
        """The objects of a list field."""
        return [
            Record(checked(item, dict, where), where)
            for index, item in enumerate(self.get(name, kind=list))
            for where in [f"{self.where}, {name}[{index}]"]
        ]


def checked(value: Any, kind: type, where: str) -> Any:
    """The value, if it is of the kind (a bool is no whole number)."""
    if type(value) is not kind:
        found = KINDS.get(type(value), "null" if value is None else "a number")
        raise InputError(f"{where}: this is {found}, not {KINDS[kind]}; correct it.")
    if kind is str and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InputError(f"{where}: the text holds half of a surrogate pair (\\ud800 to \\udfff); repair it.") from None
    return value


def filled(text: str, where: str) -> str:
    """The text, if it is more than white space."""
    if not text.strip():
        raise InputError(f"{where}: this is empty; fill it in or remove the record.")
    return text


def load_records(path: str | Path) -> list[Record]:
    """The objects of a JSON list, the one object that the file is, or the objects of its lines (JSON lines).

    Raises InputError when the file is missing, empty, not UTF-8 or not JSON, or something in it is not an object.
    """
    file = Path(path)
    text = read_text(file)
    if not text.strip():
        raise InputError(f"The file {str(file)!r} is empty; give a JSON or JSON-lines file with at least one record.")
    try:
        whole = json.loads(text)
    except RecursionError:
        raise InputError(f"The file {str(file)!r} is nested too deeply to be read; give plain records.") from None
    except ValueError as error:
        return _lines(file, text, error)
    if isinstance(whole, dict):
        return [Record(whole, file.name)]
    if not isinstance(whole, list) or not whole:
        raise InputError(f"The file {str(file)!r} holds no list of records; give a list of objects, or JSON lines.")
    names = [f"{file.name}, record {number}" for number in range(1, len(whole) + 1)]
    return [Record(checked(item, dict, where), where) for item, where in zip(whole, names, strict=True)]


def _lines(file: Path, text: str, whole_error: ValueError) -> list[Record]:
    """The records of JSON lines.

    whole_error: what reading the file as one JSON value gave
    """
    records = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines would also split at U+2028 inside a string
        if not line.strip():
            continue
        where = f"{file.name}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            # A broken first line: the file was meant as one JSON value, so that error tells more.
            reason = error if records else whole_error
            raise InputError(f"{where}: this is not JSON ({reason}); repair or remove it.") from None
        records.append(Record(checked(value, dict, where), where))
    return records
