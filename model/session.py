"""A model with one cache, and the verbs that a loop over a document is made of.

prefill      read tokens; their keys and values stay
generate     read a prompt and continue it, token by token
rollback     forget everything from a length on
branch       continue several prompts from several ends of what has been read, together
attention    what a question makes the model look at
probability  how likely a reply begins in one way rather than in another, without writing it
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from model.attention_mass import AttentionMass
from model.branch import Branches, padded_on_the_left
from model.cache import KVCache
from model.decode import decode, plain_step
from model.graph import GraphSteps
from model.kernels.cuda_attention import flash_serves
from model.packed import Packed
from model.sampling import Sampler, checked, yes_probability
from model.transformer import CausalLM

# The most that `prefill` reads in one forward pass: bounds the memory for activations. Prompts of branches go in one pass,
# however many they are.
PREFILL_TOKENS = 4096
Rows = Sequence[Sequence[int]]
Watched = tuple[Sequence[int], range]  # a prompt, and which of its tokens are watched


class Session:
    """Everything that a model has read, and what can be done next.

    capacity: positions of the cache, which is allocated here, on the model's device and in its dtype
    """

    def __init__(self, model: CausalLM, capacity: int):
        weight = model.lm_head.weight
        self.model, self.device = model, weight.device
        self.cache = KVCache(model.config, capacity, device=weight.device, dtype=weight.dtype)
        # Attention kernels for one token a row want 16-bit numbers, and heads of at least 16 channels.
        self.use_graphs = flash_serves(self.cache.storage) and model.config.head_dim >= 16
        self.graphs = GraphSteps(model, self.cache)

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
        """Read tokens. Returns the logits of the last position, (1, vocab_size).

        Raises ValueError for no tokens, and for more than the cache has room for.
        """
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
        logits = checked(self.prefill(prompt))
        for [token_id] in self._decode(logits, self.cache, max_tokens, sampler):
            if token_id in stop_ids:
                return
            yield token_id

    @torch.inference_mode()
    def branch(
        self,
        ends: Sequence[int],
        prompts: Rows,
        max_tokens: int,
        stop_ids: frozenset[int],
        sampler: Sampler,
    ) -> Iterator[list[int | None]]:
        """Continue each prompt from its own end of what has been read; what has been read does not change.

        ends: row r continues after the first ends[r] positions
        Yields, for each step, the next token id of each row, or None for rows that have ended.
        """
        logits, branches = self._read_branches(ends, prompts, max_tokens)
        running = [True] * len(prompts)
        for token_ids in self._decode(logits, branches, max_tokens, sampler):
            running = [on and token_id not in stop_ids for on, token_id in zip(running, token_ids, strict=True)]
            if not any(running):
                return
            yield [token_id if on else None for on, token_id in zip(running, token_ids, strict=True)]

    @torch.inference_mode()
    def probability(self, prompts: Rows, yes_ids: Sequence[int], no_ids: Sequence[int]) -> list[float]:
        """After each prompt, the probability that the next token is one of `yes_ids` rather than one of `no_ids`.

        The prompts are branches from everything that has been read; nothing stays.
        """
        logits, _ = self._read_branches([self.length] * len(prompts), prompts, 0)
        return yes_probability(logits, yes_ids, no_ids).tolist()

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
        return yes_probability(checked(logits), yes_ids, no_ids).item()

    @torch.inference_mode()
    def attention(self, ends: Sequence[int], question: Watched, empty: Watched, borders: Rows) -> list[list[float]]:
        """How much more a question makes the model look at parts of what has been read than an empty one; nothing stays.

        ends: for each look, how many positions it sees; both prompts are branches from there
        borders: for each look, positions that cut what it sees into spans
        Returns, for each look and span, the most that a single token of the question gives it; see AttentionMass.
        """
        pads, padded = padded_on_the_left([question[0], empty[0]])
        watched = tuple(range(pad + at.start, pad + at.stop) for pad, (_, at) in zip(pads, (question, empty), strict=True))
        both_ends = [end for end in ends for _ in range(2)]
        branches = AttentionMass(self.cache, both_ends, pads * len(ends), len(padded[0]), watched, borders)
        self.model(self._tensor(padded * len(ends)), branches)
        most = self._over_heads(branches.more).amax(dim=1).tolist()
        return [spans[: len(row) - 1] for spans, row in zip(most, borders, strict=True)]

    def _read_branches(self, ends: Sequence[int], prompts: Rows, max_tokens: int) -> tuple[Tensor, Branches]:
        pads, padded = padded_on_the_left(prompts)
        branches = Branches(self.cache, list(ends), pads, len(padded[0]) + max_tokens)
        return checked(self.model(self._tensor(padded), branches)[:, -1]), branches

    def _over_heads(self, sums: Tensor) -> Tensor:
        """Sums over the heads that this session has, over all heads: the same, where it has all of them."""
        return sums

    def _decode(
        self, logits: Tensor, context: KVCache | Branches, max_tokens: int, sampler: Sampler
    ) -> Iterator[list[int]]:
        if self.use_graphs:
            return self.graphs.decode(logits, context, max_tokens, sampler)
        return decode(logits, plain_step(self.model, context), max_tokens, sampler)

    def _tensor(self, rows: Rows) -> Tensor:
        return torch.tensor([list(row) for row in rows], dtype=torch.int64, device=self.device)
