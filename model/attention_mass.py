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
import torch.nn.functional as F
from torch import Tensor

from model.branch import Branches
from model.cache import KVCache
from model.config import AttentionOptions
from model.kernels.merge import Part


class AttentionMass(Branches):
    """Branches in pairs, a question and an empty one: how much more the tokens of the first look at parts of the cache.

    Rows 2i and 2i + 1 are a pair. They are compared layer by layer, so that only sums over the heads are kept.

    ends, pads, capacity: see Branches
    watched: for each row, which of its slots hold the tokens that are watched
    borders: for each row, increasing positions [b_0, …, b_n] of the cache, at most its end; span i is [b_i, b_(i + 1))
    more: for each pair, (n_tokens, n_spans) float32: see `contrast`, summed over the layers
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
        self.borders_at = [torch.tensor(row, device=cache.storage.device) - row[0] for row in borders]
        self.watched_at = [  # positions
            torch.arange(slots.start, slots.stop, device=cache.storage.device) + end - pad
            for slots, end, pad in zip(watched, ends, pads, strict=True)
        ]
        self.more: list[Tensor | float] = [0.0 for _ in ends[::2]]

    def attend_with_lse(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Part:
        out, lse = super().attend_with_lse(layer_idx, q, k, v, options)
        keys = self.cache.layer(layer_idx)[0, 0]
        for pair in range(len(self.more)):
            asked, empty = (self._mass(row, q[row], keys, lse[row], options) for row in (2 * pair, 2 * pair + 1))
            self.more[pair] = self.more[pair] + contrast(asked, empty)
        return out, lse

    def _mass(self, row: int, q: Tensor, keys: Tensor, lse: Tensor, options: AttentionOptions) -> Tensor:
        """(n_heads, n_tokens, n_spans) float32: the attention that each watched token of a row gives to each span."""
        slots, borders = self.watched[row], self.borders[row]
        watched = slice(slots.start - self.length, slots.stop - self.length)
        seen = keys[:, borders[0] : borders[-1]]  # (n_kv_heads, positions, head_dim)
        at, first = self.watched_at[row], borders[0]
        probabilities = attention_probabilities(q[:, watched], seen, lse[:, watched], at, first, options)
        up_to = F.pad(probabilities.cumsum(dim=-1), (1, 0))  # at [i], the sum over the first i keys
        return up_to[:, :, self.borders_at[row]].diff(dim=-1)


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


def contrast(mass: Tensor, baseline: Tensor) -> Tensor:
    """How much more each token of a question looks at each span than any token of an empty one, over the heads of a layer.

    mass, baseline: (n_heads, n_tokens, n_spans) of a question and of an empty one, which may have other tokens
    Returns (n_tokens, n_spans).
    A head that looks where it always looks, at the first token or at full stops, cancels out. The square favours the few
    heads that look something up over the many that all look a little.
    """
    return (mass - baseline.amax(dim=1, keepdim=True)).clamp(min=0).square().sum(dim=0)
