"""Several processes that share a model (torchrun; model/parallel.py): how a script begins with them, and how they end."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from cli.start import SHARED

if TYPE_CHECKING:
    import torch

    from model.parallel import Rank

GONE = "Another of the processes that share the model has ended, and this run ends with it; see what it or torchrun said."


def join(name: str | None) -> tuple[torch.device, Rank | None]:
    """The device of this process, and its rank among those that share the model; None where it has one for itself.

    name: the --device that was asked for
    Raises InputError for devices that cannot be had.
    """
    from weights.device import own_device, pick_device

    if not SHARED:
        return pick_device(name), None
    from model.parallel import start

    device = own_device(name, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    return device, start(device)


def be_silent() -> None:
    """What is printed from here on goes nowhere, but for the traceback of an error that nobody expected."""
    stderr = os.fdopen(os.dup(2), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    sys.excepthook = lambda *error: traceback.print_exception(*error, file=stderr)


@contextmanager
def together(rank: Rank | None) -> Iterator[None]:
    """Around the work that the processes share: the end of another is said in a sentence."""
    from model import InputError

    try:
        yield
        if rank is not None:
            rank.finish()
    except RuntimeError as error:
        if rank is not None and ("gloo" in str(error) or "Dist" in type(error).__name__):
            raise InputError(GONE) from None
        raise


def leave(code: int) -> NoReturn:
    """End the process. One of several does not wait for its connections, which captured CUDA graphs hold."""
    if SHARED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
