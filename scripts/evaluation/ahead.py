"""Make things in another process while this one is busy with those made before: a GPU need not wait for its documents."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

_make: Callable[[], Iterator[Any]] | None = None  # in the other process: how to begin
_things: Iterator[Any] | None = None  # and what was begun


def ahead(make: Callable[[], Iterator[T]], n_ahead: int = 8) -> Iterator[T]:
    """What `make()` yields, in its order, computed in one other process up to `n_ahead` things ahead.

    `make` and the things are sent between processes, so they must be picklable. An exception in `make` is raised here.
    """
    # A fresh interpreter: a forked one would share this one's CUDA state and locks.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin, initargs=(make,))
    try:
        waiting = deque(pool.submit(_next) for _ in range(n_ahead))
        while (thing := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(_next))
            yield thing
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _begin(make: Callable[[], Iterator[Any]]) -> None:
    global _make
    _make = make
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for the things


def _next() -> Any:
    """The next thing, None at the end."""
    global _things
    if _things is None:
        _things = _make()
    return next(_things, None)
