"""What the model looks at: how much attention the tokens of a question give to each part of a document.

The attention of a question's tokens, read after a passage, says which of its sentences the model makes use of (in-context
re-ranking, arXiv 2410.02642). Kernels do not hand out the probabilities that they compute with, but they do hand out the
log-sum-exp of each query's scores, and with it a probability is one product away:

    p_ij = exp(s_ij - LSE_i),   s_ij = q_i k_j / sqrt(head_dim),   LSE_i = log sum_j exp(s_ij)

So a few queries are multiplied once more with the keys in question: no matrix spans the document.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.branch import Branches
from model.cache import KVCache
from model.config import AttentionOptions
from model.kernels.merge import Part


class AttentionMass(Branches):
    """Branches that add up, while their prompts are read, what some of their tokens look at.

    ends, pads, capacity: see Branches
    watched: for each row, which of its slots hold the tokens that are watched
    borders: for each row, increasing positions [b_0, …, b_n] of the cache, at most its end; span i is [b_i, b_(i + 1))
    mass: for each row, (n_layers, n_heads, n spans) float32: the attention that each span got, summed over its positions
        and the watched tokens
    """

    def __init__(
        self,
        cache: KVCache,
        ends: list[int],
        pads: list[int],
        capacity: int,
        watched: Sequence[range],
        borders: Sequence[Sequence[int]],
    ):
        super().__init__(cache, ends, pads, capacity)
        self.watched, self.borders = watched, borders
        # For each row, the number of the span that each position from its first border on belongs to.
        self.span_of = [
            torch.repeat_interleave(torch.tensor(row).diff()).to(cache.storage.device)  # [0, 0, 0, 1, 1, 2, …]
            for row in borders
        ]
        # And the positions of its watched tokens.
        self.watched_at = [
            torch.arange(slots.start, slots.stop, device=cache.storage.device) + end - pad
            for slots, end, pad in zip(watched, ends, pads, strict=True)
        ]
        self.mass: list[list[Tensor]] = [[] for _ in ends]

    def attend_with_lse(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Part:
        out, lse = super().attend_with_lse(layer_idx, q, k, v, options)
        keys = self.cache.layer(layer_idx)[0]
        for row, (slots, borders) in enumerate(zip(self.watched, self.borders, strict=True)):
            watched = slice(slots.start - self.length, slots.stop - self.length)
            seen = keys[0, :, borders[0] : borders[-1]]  # (n_kv_heads, positions, head_dim)
            at, first = self.watched_at[row], borders[0]
            probabilities = attention_probabilities(q[row, :, watched], seen, lse[row, :, watched], at, first, options)
            by_span = torch.zeros(q.shape[1], len(borders) - 1, device=q.device)
            self.mass[row].append(by_span.index_add_(1, self.span_of[row], probabilities.sum(dim=1)))
        return out, lse

    def masses(self) -> list[Tensor]:
        """For each row, see above; on the host."""
        return [torch.stack(layers).cpu() for layers in self.mass]


def attention_probabilities(
    q: Tensor, keys: Tensor, lse: Tensor, positions: Tensor, first: int, options: AttentionOptions
) -> Tensor:
    """Softmax probabilities of some keys, where the log-sum-exp over all keys is known.

    q: (n_heads, n_queries, head_dim); keys: (n_kv_heads, n_keys, head_dim), of the positions from `first` on
    lse: (n_heads, n_queries) float32; positions: of the queries, (n_queries,), none before the last key's
    Returns (n_heads, n_queries, n_keys) float32.
    """
    n_kv_heads, n_keys, head_dim = keys.shape
    # In float32, as inside of the kernels: keys with large biases (Qwen2) make scores that bfloat16 rounds by whole units.
    grouped = q.float().unflatten(0, (n_kv_heads, -1))  # (n_kv_heads, group, n_queries, head_dim)
    products = (grouped @ keys.float()[:, None].transpose(-1, -2)).flatten(0, 1)
    scores = options.scores(products, head_dim)
    if options.window is not None:
        key_at = torch.arange(first, first + n_keys, device=q.device)
        scores = scores.masked_fill(key_at <= positions[:, None] - options.window, float("-inf"))
    return (scores - lse.unsqueeze(-1)).exp()


def contrast(mass: Tensor, baseline: Tensor) -> list[float]:
    """How much more each span is looked at than in the baseline: the squares of what single heads look at it more, summed.

    mass, baseline: (n_layers, n_heads, n_spans), of a question and of an empty one
    A head that looks where it always looks, at the first token or at full stops, cancels out. The square favours the few
    heads that look something up over the many that all look a little.
    """
    return (mass - baseline).clamp(min=0).square().sum(dim=(0, 1)).tolist()
