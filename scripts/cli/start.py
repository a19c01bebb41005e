"""What every script imports before anything that imports torch."""

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


def _quit(signum: int, frame: object) -> None:
    os._exit(130)


def is_script() -> bool:
    """Whether this process was started as one of the scripts, and does not only import them."""
    return bool(sys.argv) and Path(sys.argv[0]).absolute().parent == Path(__file__).absolute().parents[1]


def quit_quietly() -> None:
    """Let Ctrl-C end a script without a traceback, while modules are imported and when everything has been done."""
    if is_script() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _quit)


def interrupt_work() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


quit_quietly()
