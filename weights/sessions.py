"""Models with caches, for one document after another: weights are loaded once, and caches are kept while they suffice.

What cannot fit into the device's memory is said before gigabytes are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from model import InputError, KVCache, ModelConfig
from model.session import PREFILL_TOKENS, Session
from weights.checkpoint import Checkpoint
from weights.device import check_compile, free_bytes
from weights.safetensors_loader import Progress

if TYPE_CHECKING:
    from model.parallel import Rank
    from model.transformer import CausalLM

GIB = 2**30


@dataclass(frozen=True)
class Wanted:
    """A session that a run needs.

    role: tells sessions on one checkpoint apart
    capacity: positions of its cache
    max_length: see Checkpoint.load_model
    together: the most tokens that one forward pass reads, besides prefill
    """

    role: str
    checkpoint: Checkpoint
    capacity: int
    max_length: int
    together: int


class Sessions:
    """Opens sessions, and keeps their weights and caches for the next time.

    progress: see Checkpoint.load_model
    compiled: see CausalLM.compile_layers
    weights: see Checkpoint.load_model
    rank: which part of each model is this process's (model/parallel.py); None for all
    Raises InputError for `compiled` on another device than CUDA.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress | None = None,
        compiled: bool = False,
        weights: str = "float",
        rank: Rank | None = None,
    ):
        check_compile(compiled, device)
        self.device, self.dtype, self.progress, self.compiled = device, dtype, progress, compiled
        self.weights, self.rank = weights, rank
        self._models: dict[str, nn.Module] = {}  # by folder
        self._lengths: dict[str, int] = {}  # by folder: the length that the model's rotary frequencies are for
        self._sessions: dict[str, Session] = {}  # by role

    def check_room(self, wanted: Sequence[Wanted]) -> None:
        """Raises InputError when weights, caches and working space exceed what is free, or can be given back."""
        held = {role: session.cache.capacity for role, session in self._sessions.items()}
        if all(each.role in held and each.capacity <= held[each.role] for each in wanted):
            return
        free = free_bytes(self.device)
        if free is not None:
            free += sum(session.cache.nbytes for session in self._sessions.values())
            free += sum(weight.nbytes for model in self._models.values() for weight in model.parameters())
        needed = needed_bytes(wanted, self.dtype, self.weights, self.rank)
        if self.rank is not None and free is not None:
            free = self.rank.least(free)  # all or none have room
        if free is not None and sum(needed.values()) > free:
            weights, cache, work = (f"{needed[name] / GIB:.1f} GiB" for name in ("weights", "cache", "work"))
            raise InputError(
                f"The run needs {weights} for weights, {cache} for a cache of {wanted[0].capacity} positions and {work} to "
                f"work in; {self.device} has {free / GIB:.1f} GiB free: shorten the document, take a smaller model, or "
                "another --device or --dtype."
            )

    def open(self, wanted: Wanted) -> Session:
        """A session with an empty cache of at least the wanted capacity. The one before of its role is over."""
        folder = str(wanted.checkpoint.folder)
        if folder not in self._models:
            place = (self.device, self.dtype, wanted.max_length, self.progress, self.weights, self.rank)
            model = wanted.checkpoint.load_model(*place)
            if self.compiled:
                model.compile_layers()
            self._models[folder] = model
        elif not same_rotation(wanted.checkpoint.config, wanted.max_length, self._lengths[folder]):
            self._models[folder].set_max_length(wanted.max_length)
            self._sessions.pop(wanted.role, None)  # its CUDA graphs hold the former frequencies
        self._lengths[folder] = wanted.max_length

        session, capacity = self._sessions.pop(wanted.role, None), wanted.capacity
        if session is not None and session.cache.capacity < capacity:
            # Given back before a larger one is allocated; some spare room, as the next document may be longer still.
            session, capacity = None, capacity + capacity // 8
        if session is None:
            session = session_on(self._models[folder], capacity, self.rank)
        session.rollback(0)
        self._sessions[wanted.role] = session
        return session


def same_rotation(config: ModelConfig, first: int, second: int) -> bool:
    """Whether runs of these lengths use the same rotary frequencies; see RotaryEmbedding.set_max_length."""
    original = config.rope.original_max_position_embeddings
    return config.rope.rope_type != "longrope" or (first > original) == (second > original)


def needed_bytes(
    wanted: Sequence[Wanted], dtype: torch.dtype, weights: str = "float", rank: Rank | None = None
) -> dict[str, int]:
    """Bytes on the device: weights, caches, and an estimate of the room to work in; of a rank's part, if one is given."""
    checkpoints = {each.checkpoint.folder: each.checkpoint for each in wanted}.values()
    held = sum(checkpoint.weight_bytes(dtype, weights, rank) for checkpoint in checkpoints)
    cache = sum(each.capacity * KVCache.bytes_per_token(share(each.checkpoint.config, rank), dtype) for each in wanted)
    work = max(_work_bytes(each, share(each.checkpoint.config, rank), dtype) for each in wanted)
    return {"weights": held, "cache": cache, "work": work}


def session_on(model: CausalLM, capacity: int, rank: Rank | None = None) -> Session:
    """A session on a model, or on a rank's part of one."""
    return Session(model, capacity) if rank is None else rank.session(model, capacity)


def share(config: ModelConfig, rank: Rank | None) -> ModelConfig:
    """The numbers of the model that a process has: of a rank's part, if it is one of several."""
    return config if rank is None else rank.share(config)


def _work_bytes(wanted: Wanted, config: ModelConfig, dtype: torch.dtype) -> int:
    # The widest moment of a layer: some copies of the hidden states, and the MLP's gate, up and their product.
    width = 8 * config.hidden_size + 3 * config.intermediate_size
    n_tokens = max(min(wanted.max_length, PREFILL_TOKENS), wanted.together)
    return n_tokens * width * dtype.itemsize + config.vocab_size * 4
