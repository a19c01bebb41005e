"""Softmax attention over a set of keys can be computed in parts.

Attend to each part alone, keep the log-sum-exp (LSE) of its scores, and weigh the parts by it: the identity behind
FlashAttention (arXiv 2205.14135) and FlashDecoding.
"""

from __future__ import annotations

import torch
from torch import Tensor

Part = tuple[Tensor, Tensor]  # output (batch, n_heads, n_queries, head_dim) and LSE (batch, n_heads, n_queries) float32


def merge(first: Part, second: Part) -> Part:
    """Join attention over two disjoint sets of keys into attention over both.

    Every query must see a key in one of them.
    The first set's share of the softmax is exp(lse_1) / (exp(lse_1) + exp(lse_2)) = sigmoid(lse_1 - lse_2).
    """
    (out_1, lse_1), (out_2, lse_2) = first, second
    share = (lse_1 - lse_2).sigmoid().unsqueeze(-1)
    return torch.lerp(out_2, out_1, share.to(out_1.dtype)), torch.logaddexp(lse_1, lse_2)


def merge_all(outputs: Tensor, lses: Tensor) -> Part:
    """The same for any number of disjoint sets, stacked in the first dimension; of sets without keys the LSE is -inf.

    A query that no set has a key for gets 0, and an LSE of -inf.
    """
    lse = lses.logsumexp(dim=0)
    shares = (lses - lse.clamp(min=torch.finfo(lse.dtype).min)).exp().unsqueeze(-1)
    return (outputs * shares.to(outputs.dtype)).sum(dim=0, dtype=torch.float32).to(outputs.dtype), lse
