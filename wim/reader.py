"""From names to a `WiM`: check that everything fits, and only then load.

The order is the point: small files first, then the budget, then the weights. What cannot work is said in a sentence before
gigabytes are read.
"""

from __future__ import annotations

import torch
from torch import nn

from model import InputError, KVCache, ModelConfig
from model.session import PREFILL_TOKENS, Session
from weights import Checkpoint
from weights.device import check_compile, free_bytes
from wim.budget import Plan, make_plan
from wim.loop import WiM
from wim.prompts import Prompts
from wim.settings import Settings
from wim.verdict import Classifier

GIB = 2**30


def open_document(
    checkpoint: Checkpoint,
    document: str,
    queries: list[str],
    settings: Settings,
    *,
    prompts: Prompts | None = None,
    classifier: Checkpoint | None = None,
    device: torch.device,
    dtype: torch.dtype,
    progress: bool = False,
    compiled: bool = False,
) -> WiM:
    """Plan a run over one document, check the room it needs, load the weights and allocate the caches.

    queries: all that will be asked; the room is computed for the largest
    classifier: judges margins; may be `checkpoint` itself, which then serves both with one copy of its weights
    progress: show progress bars on stderr
    compiled: see CausalLM.compile_layers; on CUDA
    Raises InputError for whatever does not fit.
    """
    plan = make_plan(checkpoint, document, queries, settings, prompts or Prompts(), classifier)
    return Reader(checkpoint, classifier, device, dtype, progress, compiled).open(plan)


class Reader:
    """Reads one document after another with the same models and caches.

    The weights are loaded for the first document, a cache is allocated where a document needs a larger one. Opening a
    document closes the one before: its `WiM` has lost its cache.

    checkpoint, classifier, device, dtype, progress, compiled: see open_document
    Raises InputError for `compiled` on another device than CUDA.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        classifier: Checkpoint | None,
        device: torch.device,
        dtype: torch.dtype,
        progress: bool = False,
        compiled: bool = False,
    ):
        check_compile(compiled, device)
        self.checkpoint, self.classifier = checkpoint, classifier
        self.device, self.dtype, self.progress, self.compiled = device, dtype, progress, compiled
        self._models: dict[str, nn.Module] = {}  # by folder
        self._planned: dict[str, int] = {}  # by folder: the length that the model is planned for
        self._sessions: dict[str, Session] = {}  # "reader" and "judge"

    def open(self, plan: Plan) -> WiM:
        """Raises InputError when there is no room for it."""
        held = sum(session.cache.nbytes for session in self._sessions.values())
        held += sum(weight.nbytes for model in self._models.values() for weight in model.parameters())
        while not self._has_room(plan):
            try:
                check_memory(plan, self.checkpoint, self.classifier, self.device, self.dtype, held)
                break
            except InputError:
                if (smaller := plan.smaller()) is None:
                    raise
                plan = smaller
        session = self._session("reader", self.checkpoint, plan.capacity, plan.longest)
        judge = None
        if plan.verdict_capacity:
            # Its own model is planned for already: two sessions, one copy of the weights.
            own = self.classifier.folder == self.checkpoint.folder
            longest = plan.longest if own else plan.longest_verdict
            judge = Classifier(
                self._session("judge", self.classifier, plan.verdict_capacity, longest), plan.classifier_prompts
            )
        return WiM(plan, session, judge)

    def _has_room(self, plan: Plan) -> bool:
        wanted = {"reader": plan.capacity, "judge": plan.verdict_capacity}
        return all(
            not capacity or (role in self._sessions and self._sessions[role].cache.capacity >= capacity)
            for role, capacity in wanted.items()
        )

    def _session(self, role: str, checkpoint: Checkpoint, capacity: int, longest: int) -> Session:
        """An empty cache of at least `capacity` positions on the checkpoint's model, planned for `longest`."""
        folder = str(checkpoint.folder)
        if folder not in self._models:
            self._models[folder] = checkpoint.load_model(self.device, self.dtype, longest, progress=self.progress)
            if self.compiled:
                self._models[folder].compile_layers()
        elif not same_rotation(checkpoint.config, longest, self._planned[folder]):
            self._models[folder].plan(longest)
            self._sessions.pop(role, None)  # its CUDA graphs hold the former frequencies
        self._planned[folder] = longest

        session = self._sessions.pop(role, None)
        if session is not None and session.cache.capacity < capacity:
            # Given back before a larger one is allocated; some spare room, as the next document may be longer still.
            session, capacity = None, capacity + capacity // 8
        if session is None:
            session = Session(self._models[folder], capacity)
        session.rollback(0)
        self._sessions[role] = session
        return session


def same_rotation(config: ModelConfig, first: int, second: int) -> bool:
    """Whether runs of these lengths use the same rotary frequencies; see RotaryEmbedding.plan."""
    original = config.rope.original_max_position_embeddings
    return config.rope.rope_type != "longrope" or (first > original) == (second > original)


def needed_bytes(plan: Plan, checkpoint: Checkpoint, classifier: Checkpoint | None, dtype: torch.dtype) -> dict[str, int]:
    """Bytes on the device: weights and cache, each with the classifier's share, and an estimate of the room to work in."""
    config = checkpoint.config
    weights = checkpoint.weight_bytes(dtype)
    cache = plan.capacity * KVCache.bytes_per_token(config, dtype)
    if classifier is not None and plan.verdict_capacity:
        cache += plan.verdict_capacity * KVCache.bytes_per_token(classifier.config, dtype)
        weights += classifier.weight_bytes(dtype) if classifier.folder != checkpoint.folder else 0
    # The widest moment of a layer: some copies of the hidden states, and the MLP's gate, up and their product.
    width = 8 * config.hidden_size + 3 * config.intermediate_size
    n_tokens = max(min(plan.longest, PREFILL_TOKENS), plan.prompts_together)
    work = n_tokens * width * dtype.itemsize + config.vocab_size * 4
    return {"weights": weights, "cache": cache, "work": work}


def check_memory(
    plan: Plan,
    checkpoint: Checkpoint,
    classifier: Checkpoint | None,
    device: torch.device,
    dtype: torch.dtype,
    held: int = 0,
) -> None:
    """Raises InputError when weights, cache and working space exceed what is free on the device.

    held: bytes of weights and caches that are there already, for this run to use or to give back
    """
    needed, free = needed_bytes(plan, checkpoint, classifier, dtype), free_bytes(device)
    if free is not None and sum(needed.values()) > free + held:
        weights, cache, work = (f"{needed[name] / GIB:.1f} GiB" for name in ("weights", "cache", "work"))
        raise InputError(
            f"The run needs {weights} for weights, {cache} for a cache of {plan.capacity} positions and {work} to work in; "
            f"{device} has {(free + held) / GIB:.1f} GiB free: shorten the document, take a smaller model, or another "
            "--device or --dtype."
        )
