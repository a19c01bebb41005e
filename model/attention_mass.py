"""What the model looks at: how much attention some tokens give to each position.

The attention of a question's tokens, read after a document, says which of its sentences the model makes use of (in-context
re-ranking, arXiv 2410.02642). Kernels do not hand out the probabilities that they compute with, so those of a few queries
are computed once more, by the definition, in blocks of keys: no matrix spans the document.

    p_ij = exp(s_ij - LSE_i),   s_ij = q_i k_j / sqrt(head_dim),   LSE_i = log sum_j exp(s_ij)
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.cache import KVCache

KEY_BLOCK = 8192  # keys


class AttentionMass:
    """A context (model/transformer.py) around a cache that adds up, while tokens are read, what some of them look at.

    watched: which of the tokens that are read in one forward pass, counted from its first
    layers: which layers count
    mass: (length of the cache before + tokens,) float32 after the pass: the attention that each position got, summed over
        layers, heads and watched tokens
    """

    def __init__(self, cache: KVCache, watched: range, layers: range):
        self.cache, self.watched, self.layers = cache, watched, layers
        self.mass: Tensor | None = None

    def positions(self, seq_len: int) -> Tensor:
        return self.cache.positions(seq_len)

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
        out = self.cache.attend(layer_idx, q, k, v, window)
        length = self.cache.length
        if self.mass is None:
            self.mass = torch.zeros(length + k.shape[2], device=q.device)
        if layer_idx in self.layers:
            end = length + self.watched.stop  # what stands behind the watched tokens they do not see
            keys = self.cache.layer(layer_idx, end)[0]
            self.mass[:end] += attention_mass(q[:, :, self.watched.start : self.watched.stop], keys, window)
        return out

    def advance(self, seq_len: int) -> None:
        self.cache.advance(seq_len)


def attention_mass(q: Tensor, keys: Tensor, window: int | None = None) -> Tensor:
    """The attention that each key gets, summed over heads and queries, (n_keys,) float32.

    q: (1, n_heads, n_queries, head_dim), of the last positions; keys: (1, n_kv_heads, n_keys, head_dim)
    window: as in model.attention.causal_attention
    """
    (_, n_kv_heads, n_keys, head_dim), n_queries = keys.shape, q.shape[2]
    grouped = q[0].unflatten(0, (n_kv_heads, -1))  # (n_kv_heads, group, n_queries, head_dim)
    query_at = torch.arange(n_keys - n_queries, n_keys, device=q.device)[:, None]
    starts = range(0, n_keys, KEY_BLOCK)

    def scores(start: int) -> Tensor:
        """(n_kv_heads, group, n_queries, keys of a block) float32"""
        block = keys[0, :, None, start : start + KEY_BLOCK]  # (n_kv_heads, 1, keys, head_dim)
        key_at = torch.arange(start, start + block.shape[2], device=q.device)
        hidden = key_at > query_at
        if window is not None:
            hidden = hidden | (key_at <= query_at - window)
        return (grouped @ block.transpose(-1, -2)).float().mul_(head_dim**-0.5).masked_fill_(hidden, float("-inf"))

    lse = torch.stack([scores(start).logsumexp(dim=-1) for start in starts]).logsumexp(dim=0)  # each query sees itself
    return torch.cat([(scores(start) - lse.unsqueeze(-1)).exp().sum(dim=(0, 1, 2)) for start in starts])
