"""What every script imports first: what a person sees, and what Ctrl-C does, before there is anything else."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

# OpenMP reads this when torch is loaded: idle threads spin for some microseconds and then sleep. On two cores the demo
# takes 6.6 s so, and 11 s beside two busy processes; with torch's own setting 6.0 s and 66 s.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")

# torchrun starts several processes that share a model; the first of them talks to the person, the others only have a voice
# for errors (cli/ranks.py).
SHARED = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
FIRST = not SHARED or os.environ["RANK"] == "0"
voice: TextIO | None = None

CLEAR = "\r\033[K"  # of a terminal's line


def is_script() -> bool:
    """Whether this process was started as one of the scripts; not one that only imports them, nor a worker of one."""
    started = bool(sys.argv) and Path(sys.argv[0]).absolute().parent == Path(__file__).absolute().parents[1]
    return started and hasattr(sys.modules["__main__"], "__file__")


def say(what: str) -> None:
    """On a terminal, what is waited for, on a line of its own until something else is said, or `clear`."""
    _show(f"{CLEAR}{what} …")


def clear() -> None:
    _show(CLEAR)


def begin(what: str) -> None:
    """While modules are imported, a terminal says so, and Ctrl-C gives no traceback: it ends the process at once."""
    if is_script() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _quit)
        gc.disable()  # what comes now stays: nobody need look for garbage in it, neither now nor later
        say(what)


def begun() -> None:
    """The modules are there: the terminal is clean again, and Ctrl-C raises KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is _quit:
        gc.freeze()
        gc.enable()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        clear()


@contextmanager
def loading_libraries() -> Iterator[None]:
    """Around the imports that take seconds, those of torch."""
    begin("loading libraries")
    try:
        yield
    finally:
        begun()


def _quit(signum: int, frame: object) -> None:
    if sys.stderr is not None and sys.stderr.isatty():
        os.write(sys.stderr.fileno(), f"{CLEAR}Interrupted.\n".encode())  # not through a stream that may be writing
    os._exit(130)


def _show(text: str) -> None:
    if sys.stderr is not None and sys.stderr.isatty():
        sys.stderr.write(text)
        sys.stderr.flush()


def _be_silent() -> None:
    """What is printed from here on goes nowhere, but for what is printed to `voice`."""
    global voice
    voice = os.fdopen(os.dup(2), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


if not FIRST:
    _be_silent()
begin("starting")
