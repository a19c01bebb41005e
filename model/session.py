"""A model with one cache, and the verbs that a loop over a document is made of.

prefill    read tokens; their keys and values stay
generate   read a prompt and continue it, token by token
rollback   forget everything from a length on
branch     continue several prompts from several ends of what has been read, together
probability    how probable is one kind of reply against another, without writing it
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.branch import Branches
from model.cache import KVCache
from model.errors import InputError
from model.kernels.cuda_attention import flash_serves
from model.packed import Packed
from model.sampling import Sampler
from model.transformer import CausalLM, Context

if TYPE_CHECKING:
    from model.graph import GraphDecoder

# The most that `prefill` reads in one forward pass: bounds the memory for activations. Prompts of branches go in one pass,
# however many they are.
PREFILL_TOKENS = 4096
BURST = 2  # decode steps that a device is given at a time; see `_decode_ahead`

Step = Callable[[Tensor], Tensor]  # token ids (rows,) -> logits of the next ones (rows, vocab_size)


class Session:
    """Everything that a model has read, and what can be done next.

    capacity: positions of the cache, which is allocated here, on the model's device and in its dtype
    """

    def __init__(self, model: CausalLM, capacity: int):
        weight = model.lm_head.weight
        self.model, self.device = model, weight.device
        self.cache = KVCache(model.config, capacity, device=weight.device, dtype=weight.dtype)
        # The kernel of model/graph.py takes what FlashAttention does, except heads of fewer than 16 channels. That module
        # is imported where it is used: it loads the compiler, which takes seconds.
        self.use_graphs = flash_serves(self.cache.storage) and model.config.head_dim >= 16
        self.decoders: dict[tuple[int, int], GraphDecoder] = {}  # by (rows, index of the first row)

    @property
    def length(self) -> int:
        """How many positions have been read."""
        return self.cache.length

    def rollback(self, length: int) -> None:
        """See KVCache.rollback."""
        self.cache.rollback(length)

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked for; for clocks."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    @torch.inference_mode()
    def prefill(self, token_ids: Sequence[int]) -> Tensor:
        """Read tokens. Returns the logits of the last position, (1, vocab_size)."""
        if not token_ids:
            raise ValueError("There is nothing to prefill; give at least one token.")
        for piece in self._tensor([token_ids]).split(PREFILL_TOKENS, dim=1):
            logits = self.model(piece, self.cache)
        return logits[:, -1]

    @torch.inference_mode()
    def generate(self, prompt: Sequence[int], max_tokens: int, stop_ids: frozenset[int], sampler: Sampler) -> Iterator[int]:
        """Read the prompt, then yield token ids until a stop id (which is not yielded) or `max_tokens`.

        Prompt and tokens stay in the cache, as if read (but for the last of `max_tokens`); roll back to be rid of them.
        Raises InputError, as `branch` and `probability` do, where the model computes NaN or infinity after the prompt.
        """
        logits = _checked(self.prefill(prompt))
        n_tokens = 0
        step = self._graph_tail(max_tokens) if self.use_graphs else self._plain_decoder(self.cache)
        try:
            for [token_id] in self._decode(logits, step, max_tokens, sampler):
                if token_id in stop_ids:
                    return
                n_tokens += 1
                yield token_id
        finally:
            # A graph does not move the pointer. Of the tokens taken it has read all but the last of `max_tokens`.
            if self.use_graphs:
                self.cache.advance(min(n_tokens, max(max_tokens - 1, 0)))

    @torch.inference_mode()
    def branch(
        self,
        ends: Sequence[int],
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        stop_ids: frozenset[int],
        sampler: Sampler,
    ) -> Iterator[list[int | None]]:
        """Continue each prompt from its own end of what has been read; what has been read does not change.

        ends: row r continues after the first ends[r] positions
        Yields, for each step, the next token id of each row, or None for rows that have ended.
        """
        logits, branches = self._read_branches(ends, prompts, max_tokens)
        step = self._graph_branches(branches) if self.use_graphs else self._plain_decoder(branches)
        running = [True] * len(prompts)
        for token_ids in self._decode(logits, step, max_tokens, sampler):
            running = [on and token_id not in stop_ids for on, token_id in zip(running, token_ids, strict=True)]
            if not any(running):
                return
            yield [token_id if on else None for on, token_id in zip(running, token_ids, strict=True)]

    @torch.inference_mode()
    def probability(self, prompts: Sequence[Sequence[int]], yes_ids: Sequence[int], no_ids: Sequence[int]) -> list[float]:
        """After each prompt, the probability that the next token is one of `yes_ids` rather than one of `no_ids`.

        The prompts are branches from everything that has been read; nothing stays.
        """
        logits, _ = self._read_branches([self.length] * len(prompts), prompts, 0)
        return _probability(logits, yes_ids, no_ids).tolist()

    @torch.inference_mode()
    def prefill_and_probability(
        self, token_ids: Sequence[int], other: Session, prompt: Sequence[int], yes_ids: Sequence[int], no_ids: Sequence[int]
    ) -> float:
        """`prefill` here and `probability` with one prompt on another session of the same model, in one forward pass.

        What is read here is the same to rounding: some matrix kernels add up in another order for more tokens.
        """
        n_first = (len(token_ids) - 1) // PREFILL_TOKENS * PREFILL_TOKENS  # too much for one forward pass
        if n_first:
            self.prefill(token_ids[:n_first])
        last, length = token_ids[n_first:], other.length
        logits = self.model(self._tensor([[*last, *prompt]]), Packed(self.cache, len(last), other.cache))[:, -1]
        other.rollback(length)
        return _probability(_checked(logits), yes_ids, no_ids).item()

    def _read_branches(
        self, ends: Sequence[int], prompts: Sequence[Sequence[int]], max_tokens: int
    ) -> tuple[Tensor, Branches]:
        longest = max(map(len, prompts))
        pads = [longest - len(prompt) for prompt in prompts]
        branches = Branches(self.cache, list(ends), pads, longest + max_tokens)
        padded = [[0] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)]
        return _checked(self.model(self._tensor(padded), branches)[:, -1]), branches

    def _decode(self, logits: Tensor, step: Step, max_tokens: int, sampler: Sampler) -> Iterator[list[int]]:
        """Sample and step. Yields the token ids of all rows."""
        if self.use_graphs:
            yield from self._decode_ahead(logits, step, max_tokens, sampler)
            return
        for n_left in reversed(range(max_tokens)):
            tokens = sampler(logits)  # (rows,)
            yield tokens.tolist()
            if n_left:
                logits = step(tokens)

    def _decode_ahead(self, logits: Tensor, step: Step, max_tokens: int, sampler: Sampler) -> Iterator[list[int]]:
        """The same without waiting: the host looks at a burst of tokens when the device has been given the next one.

        device    | burst 1 | burst 2 | burst 3 |
        host      |         | look 1  | look 2  | look 3

        What is computed past an end token is thrown away.
        """
        tokens: Tensor | None = None
        bursts: deque[_ToHost] = deque()
        for first in range(0, max_tokens, BURST):
            burst = []
            for n_before in range(first, min(first + BURST, max_tokens)):
                logits = step(tokens) if n_before else logits
                tokens = sampler(logits)  # (rows,)
                burst.append(tokens)
            bursts.append(_ToHost(torch.stack(burst)))
            if len(bursts) > 1:
                yield from bursts.popleft().wait()
        for burst in bursts:
            yield from burst.wait()

    def _plain_decoder(self, context: Context) -> Step:
        return lambda tokens: self.model(tokens[:, None], context)[:, -1]

    def _graph_tail(self, max_tokens: int) -> Step:
        """Continues what the cache holds. The last token is not read."""
        return self._graph([self.length], [self.length], [self.length], max(max_tokens - 1, 0))

    def _graph_branches(self, branches: Branches) -> Step:
        """Continues branches whose prompts have been read."""
        first = [branches.base + row * branches.capacity for row in range(len(branches.ends))]
        starts = [slot + pad for slot, pad in zip(first, branches.pads, strict=True)]
        slots = [slot + branches.length for slot in first]
        return self._graph(branches.ends, starts, slots, branches.capacity - branches.length)

    def _graph(self, ends: list[int], starts: list[int], slots: list[int], n_tokens: int) -> Step:
        """See GraphDecoder.begin. More rows than a decoder takes are shared out among several."""
        from model.graph import GraphDecoder, max_rows, next_power_of_two

        size, decoders = max_rows(self.model.config), []
        for at in range(0, len(ends), size):
            part = slice(at, at + size)
            rows = next_power_of_two(len(ends[part]))  # few sizes: few graphs to capture
            if (rows, at) not in self.decoders:
                self.decoders[rows, at] = GraphDecoder(self.model, self.cache, rows)
            decoders.append(self.decoders[rows, at])
            decoders[-1].begin(ends[part], starts[part], slots[part], n_tokens)
        if len(decoders) == 1:
            return decoders[0]
        return lambda tokens: torch.cat([step(part) for step, part in zip(decoders, tokens.split(size), strict=True)])

    def _tensor(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor([list(row) for row in rows], dtype=torch.int64, device=self.device)


class _ToHost:
    """Token ids on their way to the host. `wait` waits for them, and not for what the device was given since."""

    def __init__(self, tokens: Tensor):
        if tokens.device.type != "cuda":
            self.host, self.arrived = tokens, None
            return
        self.host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True).copy_(tokens, non_blocking=True)
        self.arrived = torch.cuda.Event()
        self.arrived.record(torch.cuda.current_stream(tokens.device))

    def wait(self) -> list[list[int]]:
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.host.tolist()


def _checked(logits: Tensor) -> Tensor:
    """Raises InputError for logits that are no numbers, from which any token could follow."""
    if not logits.isfinite().all():
        raise InputError(
            "The model computes NaN or infinity instead of logits: its weights are damaged, or too large for "
            f"{str(logits.dtype).removeprefix('torch.')}; download them again, or take another --dtype."
        )
    return logits


def _probability(logits: Tensor, yes_ids: Sequence[int], no_ids: Sequence[int]) -> Tensor:
    """P(yes) / (P(yes) + P(no)) of the next token, (rows,)."""
    log_odds = logits[:, list(yes_ids)].float().logsumexp(-1) - logits[:, list(no_ids)].float().logsumexp(-1)
    return log_odds.sigmoid()
