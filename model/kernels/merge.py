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
    """The same for any number of disjoint sets, stacked in the first dimension; a set without keys has outputs of 0 and an
    LSE of -inf.

    A query that no set has a key for gets 0, and an LSE of -inf.
    """
    shares = lses.softmax(dim=0).nan_to_num(1.0)  # exp(lse_i) / sum_j exp(lse_j)
    lse = lses.amax(dim=0) - shares.amax(dim=0).log()  # by the largest share; logsumexp takes twice as many kernels
    weighted = outputs * shares.unsqueeze(-1).to(outputs.dtype)
    return weighted.sum(dim=0, dtype=torch.float32).to(outputs.dtype), lse
