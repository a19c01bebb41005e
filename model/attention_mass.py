"""What the model looks at: how much attention the tokens of a question give to each part of a document.

The attention of a question's tokens, read after a passage, says which of its sentences the model makes use of (in-context
re-ranking, arXiv 2410.02642). Kernels do not hand out the probabilities that they compute with, but they do hand out the
log-sum-exp of each query's scores, and with it a probability is one product away:

    p_ij = exp(s_ij - LSE_i),   s_ij = q_i k_j / sqrt(head_dim),   LSE_i = log sum_j exp(s_ij)

So a few queries are multiplied once more with the keys in question: no matrix spans the document. The sum over a sentence
is the difference of two running sums.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.branch import Branches
from model.cache import KVCache
from model.config import AttentionOptions
from model.kernels.merge import Part

MOST_SCORES = 2**26  # computed at a time: bounds the memory, 4 bytes each and of keys about as much


class AttentionMass(Branches):
    """Branches in pairs, a question and an empty one: how much more the tokens of the first look at parts of the cache.

    Rows 2i and 2i + 1 are a pair. They are compared layer by layer, so that only sums over the heads are kept.

    ends, pads, capacity: see Branches
    watched: which slots of the questions' prompt, and of the empty ones', hold the tokens that are watched; prompts come in
        one call
    borders: for each pair, increasing positions [b_0, …, b_n] of the cache, at most its end; span i is [b_i, b_(i + 1))
    more: (pairs, n_tokens, n_spans) float32: see `contrast`, summed over the layers; 0 for spans that only others have
    """

    def __init__(
        self,
        cache: KVCache,
        ends: list[int],
        pads: list[int],
        capacity: int,
        watched: tuple[range, range],
        borders: Sequence[Sequence[int]],
    ):
        super().__init__(cache, ends, pads, capacity)
        device = cache.storage.device
        self.watched = watched
        most_keys, most_spans = max(row[-1] - row[0] for row in borders), max(map(len, borders)) - 1
        padded = torch.tensor([[*row, *[row[-1]] * (most_spans + 1 - len(row))] for row in borders])
        self.borders_at = (padded - padded[:, :1]).to(device)  # (pairs, n_spans + 1)
        # From the key before the first span on. Keys after the last one, of a pair with fewer than others, are not used.
        keys_at = padded[:, :1] - 1 + torch.arange(most_keys + 1)
        self.keys_at = keys_at.clamp(0, cache.length - 1).to(device)  # (pairs, n_keys)
        self.positions_watched = self._by_pair(self.positions(capacity)[:, None])[:, 0]  # (pairs, n_tokens)
        self.more = torch.zeros(len(borders), len(watched[0]), most_spans, device=device)

    def attend_with_lse(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Part:
        out, lse = super().attend_with_lse(layer_idx, q, k, v, options)
        queries, of_queries = self._by_pair(q), self._by_pair(lse)
        keys = self.cache.layer(layer_idx)[0, 0]  # (n_kv_heads, capacity, head_dim)
        n_pairs = max(1, MOST_SCORES // (of_queries[0].numel() * self.keys_at.shape[1]))  # of which at a time
        for first in range(0, len(queries), n_pairs):
            pairs = slice(first, first + n_pairs)
            seen = keys[:, self.keys_at[pairs]].transpose(0, 1)  # (pairs, n_kv_heads, n_keys, head_dim)
            positions = self.positions_watched[pairs], self.keys_at[pairs]
            probabilities = attention_probabilities(queries[pairs], seen, of_queries[pairs], *positions, options)
            borders_at = self.borders_at[pairs, None, None].expand(*probabilities.shape[:3], -1)
            mass = probabilities.cumsum_(dim=-1).gather(-1, borders_at).diff()  # (pairs, n_heads, n_tokens, n_spans)
            self.more[pairs] += contrast(*mass.split([len(at) for at in self.watched], dim=2))
        return out, lse

    def _by_pair(self, rows: Tensor) -> Tensor:
        """Of what rows have, (rows, n_heads, slots, …): what their watched tokens have, (pairs, n_heads, n_tokens, …).

        Both rows see the same keys. Side by side, their tokens are multiplied with them in one product.
        """
        return torch.cat([rows[i::2, :, at.start : at.stop] for i, at in enumerate(self.watched)], dim=2)


def attention_probabilities(
    q: Tensor, keys: Tensor, lse: Tensor, positions: Tensor, key_positions: Tensor, options: AttentionOptions
) -> Tensor:
    """Softmax probabilities of some keys, where the log-sum-exp over all keys is known.

    q: (batch, n_heads, n_queries, head_dim); keys: (batch, n_kv_heads, n_keys, head_dim)
    lse: (batch, n_heads, n_queries) float32
    positions, key_positions: (batch, n_queries) and (batch, n_keys); no query stands before a key
    Returns (batch, n_heads, n_queries, n_keys) float32.
    """
    # In float32, as inside of the kernels: keys with large biases (Qwen2) make scores that bfloat16 rounds by whole units.
    grouped = q.float().reshape(*keys.shape[:2], -1, q.shape[-1])  # (batch, n_kv_heads, group * n_queries, head_dim)
    products = (grouped @ keys.float().transpose(2, 3)).view(*q.shape[:3], -1)
    scores = options.scores(products, q.shape[-1])
    if options.window is not None:
        hidden = key_positions[:, None] <= positions[:, :, None] - options.window  # (batch, n_queries, n_keys)
        scores.masked_fill_(hidden[:, None], float("-inf"))
    return scores.sub_(lse.unsqueeze(-1)).exp_()


def contrast(mass: Tensor, baseline: Tensor) -> Tensor:
    """How much more each token of a question looks at each span than any token of an empty one, over the heads of a layer.

    mass, baseline: (…, n_heads, n_tokens, n_spans) of a question and of an empty one, which may have other tokens
    Returns (…, n_tokens, n_spans).
    A head that looks where it always looks, at the first token or at full stops, cancels out. The square favours the few
    heads that look something up over the many that all look a little.
    """
    return (mass - baseline.amax(dim=-2, keepdim=True)).clamp(min=0).square().sum(dim=-3)
