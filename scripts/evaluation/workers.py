"""Processes side by side: for models whose matrices are too small for torch's threads to bring anything."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing import connection
from typing import TypeVar

from tqdm import tqdm

from model import InputError

T = TypeVar("T")


def usable_cores() -> int:
    """Those that this process may run on, where the system says which."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def side_by_side(makes: Sequence[Callable[[], Iterable[T]]]) -> Iterator[T]:
    """What all the `make()` yield, as it comes, each made in a process of its own; the things of one in their order.

    The functions and the things are sent between processes, so they must be picklable. Closing the iterator ends the
    processes. Raises InputError when one of them does, and when one is lost.
    """
    n_threads = max(1, usable_cores() // len(makes))
    workers: dict[connection.Connection, multiprocessing.process.BaseProcess] = {}
    try:
        for make in makes:
            receiver, process = _start(make, n_threads)
            workers[receiver] = process
        at_work = set(workers)
        while at_work:
            for receiver in connection.wait(at_work):
                try:
                    thing = receiver.recv()
                except (EOFError, OSError):  # nobody is at the other end
                    raise _lost(workers[receiver]) from None
                if thing is None:
                    at_work.remove(receiver)
                elif isinstance(thing, InputError):
                    raise thing
                else:
                    yield thing
    finally:
        for process in workers.values():
            process.terminate()
        for process in workers.values():
            process.join()


def _start(
    make: Callable[[], Iterable[T]], n_threads: int
) -> tuple[connection.Connection, multiprocessing.process.BaseProcess]:
    # A fresh interpreter: a forked one would share the locks of torch's and the tokenizer's threads.
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_all, args=(make, sender, n_threads), daemon=True)
    # Ctrl-C is for this process alone. The new one inherits that, so that it holds while modules are still imported.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, handler)
    sender.close()  # the other process now has the only one: when it ends, the receiver notices
    return receiver, process


def _send_all(make: Callable[[], Iterable[T]], sender: connection.Connection, n_threads: int) -> None:
    """Send the things and None; or the error that ends them."""
    import torch

    torch.set_num_threads(n_threads)
    tqdm.set_lock(threading.RLock())  # its own would be shared by processes, and reported as leaked where one is ended
    with suppress(BrokenPipeError):  # nobody is left to send to
        try:
            for thing in make():
                sender.send(thing)
            sender.send(None)
        except InputError as error:
            sender.send(error)


def _lost(process: multiprocessing.process.BaseProcess) -> InputError:
    process.join()
    return InputError(
        f"A worker process was lost (exit code {process.exitcode}; -9 is often a lack of memory); the same command goes on "
        "from here, perhaps with fewer --workers."
    )
