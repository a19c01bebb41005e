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
    watched: for each row, which slots of its prompt, which comes in one call, hold the tokens that are watched
    borders: for each pair, increasing positions [b_0, …, b_n] of the cache, at most its end; span i is [b_i, b_(i + 1))
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
        device = cache.storage.device
        self.watched, self.borders = watched, borders
        self.borders_at = [torch.tensor(row, device=device) - row[0] for row in borders]
        positions = [torch.arange(at.start, at.stop) + end - pad for at, end, pad in zip(watched, ends, pads, strict=True)]
        self.n_tokens = [(len(asked), len(empty)) for asked, empty in zip(watched[::2], watched[1::2], strict=True)]
        self.n_watched = [sum(both) for both in self.n_tokens]
        self.positions_watched = torch.cat(positions).to(device).split(self.n_watched)
        self.more: list[Tensor | float] = [0.0 for _ in borders]

    def attend_with_lse(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Part:
        out, lse = super().attend_with_lse(layer_idx, q, k, v, options)
        keys = self.cache.layer(layer_idx)[0, 0]
        for pair, watched in enumerate(zip(self._by_pair(q), self._by_pair(lse), self.positions_watched, strict=True)):
            first, last = self.borders[pair][0], self.borders[pair][-1]
            of_queries, of_lse, positions = watched
            probabilities = attention_probabilities(of_queries, keys[:, first:last], of_lse, positions, first, options)
            up_to = F.pad(probabilities.cumsum(dim=-1), (1, 0))  # at [i], the sum over the first i keys
            mass = up_to[:, :, self.borders_at[pair]].diff(dim=-1)  # (n_heads, n_tokens, n_spans)
            self.more[pair] += contrast(*mass.split(self.n_tokens[pair], dim=1))
        return out, lse

    def _by_pair(self, rows: Tensor) -> Sequence[Tensor]:
        """Of what rows have, (rows, n_heads, slots, …): for each pair what its watched tokens have, (n_heads, n_tokens, …).

        Both rows see the same keys. Side by side, their tokens are multiplied with them in one product.
        """
        watched = [row[:, at.start : at.stop] for row, at in zip(rows, self.watched, strict=True)]
        return torch.cat(watched, dim=1).split(self.n_watched, dim=1)


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
    grouped = q.float().reshape(n_kv_heads, -1, head_dim)  # (n_kv_heads, group * n_queries, head_dim)
    products = (grouped @ keys.float().transpose(1, 2)).view(*q.shape[:2], n_keys)
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
