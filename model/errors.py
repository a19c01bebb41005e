"""The exceptions that a person is meant to read, and how what they quote is kept short."""

from __future__ import annotations

import reprlib


class InputError(ValueError):
    """Something from outside (a file, an argument, a checkpoint) cannot be used.

    The message is one sentence: what was wrong, with the value, and what to do. Scripts print it and exit with 2.
    """


class DoesNotFit(InputError):
    """A model's context cannot hold a document with what is asked about it; a shorter one may do."""


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100
_short.maxlist = _short.maxtuple = _short.maxdict = 8
_short.maxlevel = 3


def shown(value: object) -> str:
    """`repr(value)` for a message, cut where it is long: a few of many elements, the two ends of a long text."""
    return _short.repr(value)


def reason(error: BaseException, most: int = 160) -> str:
    """What an exception of a library says, for a message: its first line, cut where it is long; its name if it is mute."""
    said = str(error).strip()
    line = said.splitlines()[0].strip().rstrip(".") if said else type(error).__name__
    return line if len(line) <= most else f"{line[:most]}..."
