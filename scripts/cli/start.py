"""What every script imports before anything that imports torch, which takes seconds."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

# OpenMP reads this when torch is loaded: idle threads spin for some microseconds and then sleep. On two cores the demo
# takes 6.6 s so, and 11 s beside two busy processes; with torch's own setting 6.0 s and 66 s.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")


def is_script() -> bool:
    """Whether this process was started as one of the scripts; not one that only imports them, nor a worker of one."""
    started = bool(sys.argv) and Path(sys.argv[0]).absolute().parent == Path(__file__).absolute().parents[1]
    return started and hasattr(sys.modules["__main__"], "__file__")


def _quit(signum: int, frame: object) -> None:
    os._exit(130)


def begin() -> None:
    """While modules are imported, a terminal says that something happens, and Ctrl-C gives no traceback."""
    if is_script() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _quit)
        _show("starting …")


def begun() -> None:
    """The modules are there: the terminal is clean again, and Ctrl-C raises KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _show("\r\033[K")


def _show(text: str) -> None:
    if sys.stderr is not None and sys.stderr.isatty():
        sys.stderr.write(text)
        sys.stderr.flush()


begin()
