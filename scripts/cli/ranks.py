"""Several processes that share a model (torchrun; model/parallel.py): how a script begins with them, and how they end.

The first talks to the person, the others are silent. But none is left behind, whichever ends first and however: what went
wrong is said once, and all others end.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from cli import start
from cli.start import FIRST, SHARED
from wim.events import ChunkJudged, ChunkRead, Event, MarginDone

if TYPE_CHECKING:
    import torch
    from torch.distributed import TCPStore

    from model.parallel import Rank
    from wim import WiM

GONE = "error: Another of the processes that share the model has ended, and this run ends with it; torchrun says which."
EVERY = 0.2  # seconds between two looks at whether the others are still there

# What the processes of this run know of each other, once they have joined: torchrun keeps it, and ends with it.
#   errors    how many have had one, so that the first says it
#   over      there once one has ended badly, and has said why
board: TCPStore | None = None
leaving = threading.Event()  # this process ends by itself, with a code of its own


def join(name: str | None) -> tuple[torch.device, Rank | None]:
    """The device of this process, and its rank among those that share the model; None where it has one for itself.

    name: the --device that was asked for
    Raises InputError for devices that cannot be had.
    """
    global board
    from weights.device import own_device, pick_device

    if not SHARED:
        return pick_device(name), None
    from torch.distributed import TCPStore

    from model import parallel

    device = own_device(name, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    board = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    _watch()
    if not FIRST:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process decides what Ctrl-C means
    return device, parallel.start(device)


def stepping(wim: WiM, rank: Rank | None) -> tuple[Callable[[], None], Callable[[Iterator[Event]], Iterator[Event]]]:
    """What stops the reading, and what the events of a question pass through: the processes stop at the same event."""
    if rank is None:
        return wim.stop, iter
    stopped = threading.Event()

    def in_step(events: Iterator[Event]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, (ChunkRead, ChunkJudged, MarginDone)) and rank.agreed(stopped.is_set()):
                wim.stop()
            yield event

    return stopped.set, in_step


def tell_once(text: str) -> None:
    """Say an error. Of several processes that have one, the first says it, and the others end with it."""
    if board is not None:
        if board.check(["over"]) or board.add("errors", 1) > 1:
            return
    elif not FIRST:
        return  # before they join, all have the same
    print(text, file=start.voice or sys.stderr, flush=True)


def leave(main: Callable[[], int]) -> NoReturn:
    """Do the work of a script and end the process with the code that it returns."""
    if not SHARED:
        sys.exit(main())
    try:
        code = main()
    except SystemExit as end:  # from the options
        code = end.code or 0
    except BaseException as error:  # nobody expected this one
        tell_once(GONE if _is_of_another(error) else traceback.format_exc())
        code = 1
    leaving.set()
    with suppress(OSError, RuntimeError, ValueError):  # the reader of the output has gone, or torchrun
        if code and board is not None:
            board.set("over", "")
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # connections are not waited for: captured CUDA graphs hold them


def _is_of_another(error: BaseException) -> bool:
    """Whether an exchange failed because another process was not there any more."""
    return isinstance(error, RuntimeError) and ("gloo" in str(error) or type(error).__name__.startswith("Dist"))


def _watch() -> None:
    """End this process when another has ended badly, or torchrun itself, whatever the main thread waits for.

    When a process has ended badly, torchrun sends SIGTERM to the others, and waits for some time.
    """
    heard, signals = os.pipe()
    os.set_blocking(signals, False)
    signal.set_wakeup_fd(signals, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda signum, frame: None)  # the main thread may be in an exchange that never ends
    threading.Thread(target=_end_with_others, args=(heard,), daemon=True).start()


def _end_with_others(heard: int) -> None:
    with suppress(RuntimeError):  # torchrun has gone, and the board with it
        while not board.check(["over"]):
            if select.select([heard], [], [], EVERY)[0] and signal.SIGTERM in os.read(heard, 64):
                tell_once(GONE)
                break
    if not leaving.is_set():
        os._exit(2)
