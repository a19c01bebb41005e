"""From logits to the next token: greedy, or temperature with nucleus sampling (top-p, arXiv 1904.09751);
and to the probability of YES against NO.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.errors import InputError

MIN_TEMPERATURE = 1e-6  # below, the likeliest token has all the probability


class Sampler:
    """Chooses one token per row. temperature 0 is greedy; the same seed draws the same tokens on the same device."""

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0):
        self.temperature, self.top_p, self.seed = temperature, top_p, seed
        self.generator: torch.Generator | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """logits: (rows, vocab_size). Returns token ids, (rows,) int64, on the same device."""
        if self.temperature < MIN_TEMPERATURE:
            return logits.argmax(dim=-1)
        if self.generator is None:
            self.generator = torch.Generator(logits.device).manual_seed(self.seed)
        logits = logits.float() - logits.amax(dim=-1, keepdim=True)  # so that no small temperature makes infinities
        probabilities = (logits / self.temperature).softmax(dim=-1)
        if self.top_p < 1:
            probabilities = nucleus(probabilities, self.top_p)
        return torch.multinomial(probabilities, 1, generator=self.generator).squeeze(-1)


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of most probable tokens whose mass reaches top_p, at least one; not renormalised."""
    ordered, token_ids = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered  # the mass of all more probable tokens
    return torch.zeros_like(probabilities).scatter(
        -1, token_ids, ordered.masked_fill((before >= top_p) & (before > 0), 0.0)
    )


def checked(logits: Tensor) -> Tensor:
    """The same logits. Raises InputError for those that are no numbers, from which any token could follow."""
    if not logits.isfinite().all():
        raise InputError(
            "The model computes NaN or infinity instead of logits: its weights are damaged, or too large for "
            f"{str(logits.dtype).removeprefix('torch.')}; download them again, or take another --dtype."
        )
    return logits


def yes_probability(logits: Tensor, yes_ids: Sequence[int], no_ids: Sequence[int]) -> Tensor:
    """P(yes) / (P(yes) + P(no)) of the next token, (rows,) float32. logits: (rows, vocab_size)"""
    log_odds = logits[:, list(yes_ids)].float().logsumexp(-1) - logits[:, list(no_ids)].float().logsumexp(-1)
    return log_odds.sigmoid()
