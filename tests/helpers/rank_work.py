"""Several processes on this machine, and what they do in the tests of model/parallel.py."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from model_variants import random_tokens
from torch.distributed import TCPStore

CPU = torch.device("cpu")
PLANNED = 200
# Forked from a process that has loaded torch and nothing else.
processes = get_context("forkserver")
processes.set_forkserver_preload(["torch", "torch.distributed"])


@contextmanager
def started(size: int, work: Callable, *arguments: object):
    """`work(*arguments)` in so many processes, in surroundings as torchrun makes them. Gives processes and pipes."""
    board = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ours, theirs = zip(*(processes.Pipe() for _ in range(size)), strict=True)
    ranks = [processes.Process(target=_run, args=(theirs[i], i, size, board.port, work, arguments)) for i in range(size)]
    try:
        for rank, pipe in zip(ranks, theirs, strict=True):
            rank.start()
            pipe.close()
        yield ranks, ours
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()


def together(size: int, work: Callable, *arguments: object) -> list:
    """What `work(rank, *arguments)` returns in each of so many processes."""
    with started(size, _work, work, *arguments) as (_, pipes):
        assert all(pipe.poll(120) for pipe in pipes), "a process does not answer"
        errors, results = zip(*(pipe.recv() for pipe in pipes), strict=True)
        # When one has ended, the others lose their connection to it.
        errors = sorted(filter(None, errors), key=lambda error: "gloo" in error)
        assert not errors, errors[0]
        return list(results)


def _run(pipe: Connection, index: int, size: int, port: int, work: Callable, arguments: Sequence[object]) -> None:
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "tests",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(index),
        "LOCAL_RANK": str(index),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }
    torch.set_num_threads(1)
    work(pipe, *arguments)


def _work(pipe: Connection, work: Callable, *arguments: object) -> None:
    from model.parallel import start

    try:
        answer = None, work(start(CPU), *arguments)
    except Exception:
        answer = traceback.format_exc(), None
    pipe.send(answer)
    os._exit(0)


# What the processes do ----------------------------------------------------------------------------------------------------


def part_of(rank, folder: Path, published: dict, weights: str):
    """A rank's part of the checkpoint in a folder, computed in float32. published: its config.json"""
    from model import empty_model
    from weights.config import read_model_config
    from weights.safetensors_loader import load_weights

    config = read_model_config(published)
    model = empty_model(config, torch.float32, weights, rank).allocate("cpu")
    load_weights(model, folder, cuts=rank.cuts(config))
    model.set_max_length(PLANNED)
    return model.eval()


def behaviours(rank, places: Sequence[tuple[Path, dict, str, int]]) -> list[dict]:
    return [behaviour(rank.session(part_of(rank, *place), PLANNED), n_tokens) for *place, n_tokens in places]


def behaviour(session, n_tokens: int) -> dict:
    """What a session answers to each of its verbs."""
    from model.sampling import Sampler

    def generated(sampler):
        at = session.length
        tokens = list(session.generate([5, 7, 11], 6, frozenset(), sampler))
        session.rollback(at)
        return tokens

    storage = session.cache.storage.data_ptr()
    seen = {"logits": session.prefill(random_tokens(n_tokens))[0].tolist()}
    half, end = session.length // 2, session.length
    seen["tokens"] = [generated(Sampler()), generated(Sampler()), generated(Sampler(1.0, 0.9, seed=3))]
    seen["branches"] = list(session.branch([half, end], [[3, 4], [5]], 4, frozenset(), Sampler()))
    seen["probability"] = session.probability([[3, 9], [4]], [1, 2], [8])
    asked, borders = (([6, 7, 8], range(2)), ([9], range(1))), [[0, 3, half], [2, 9, end]]
    seen["attention"] = session.attention([half, end], *asked, borders)
    seen["length"], seen["in place"] = session.length, session.cache.storage.data_ptr() == storage
    return seen


def every_run(rank, text: str, queries: list[str], wanted: Sequence[tuple[str, dict]]) -> list:
    return [events_of(rank, folder, text, queries, options) for folder, options in wanted]


def events_of(rank, folder: str, text: str, queries: list[str], options: dict) -> list:
    """All that happens when a document is asked some questions, without the seconds."""
    from wim.events import Done

    wim = opened(rank, folder, text, queries, options)
    events = [event for query in queries for event in wim.ask(query)]
    events = [replace(event, seconds={}) if isinstance(event, Done) else event for event in events]
    return [(type(event).__name__, asdict(event)) for event in events]


def opened(rank, folder: str, text: str, queries: list[str], options: dict):
    from weights import Checkpoint
    from wim.reader import open_document
    from wim.settings import Settings

    checkpoint = Checkpoint.open(folder)
    place = {"device": CPU, "dtype": torch.float32, "rank": rank}
    return open_document(checkpoint, text, queries, Settings(**options), classifier=checkpoint, **place)


def stopped(rank, folder: str, text: str, query: str, options: dict) -> list:
    """The first process wants to stop after two chunks; at which event each of them stops."""
    from cli.ranks import stepping

    from wim.events import ChunkRead

    wim = opened(rank, folder, text, [query], options)
    stop, in_step = stepping(wim, rank)
    seen = []
    for event in in_step(wim.ask(query)):
        seen.append(str(event) if not hasattr(event, "seconds") else event.answer)
        if rank.first and isinstance(event, ChunkRead) and event.chunk == 1:
            stop()
    return seen


def script(pipe: Connection, folder: Path, arguments: list[str]) -> None:
    """scripts/generate.py, with its output in files of the folder."""
    rank = os.environ["RANK"]
    for stream, name in ((1, "out"), (2, "err")):
        file = os.open(folder / f"{name}.{rank}", os.O_WRONLY | os.O_CREAT, 0o644)
        os.dup2(file, stream)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", buffering=1) for n in (1, 2))
    import generate
    from cli.ranks import leave

    leave(lambda: generate.main(arguments))
