"""Attention: first by its definition, then which kernel computes it in which case.

Shapes here: queries (batch, n_heads, n_queries, head_dim), keys and values (batch, n_kv_heads, n_keys, head_dim). With
grouped-query attention n_heads is a multiple of n_kv_heads, and query head h reads key head h // (n_heads / n_kv_heads).
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import PLAIN, AttentionOptions
from model.kernels.cuda_attention import chunk_attention, flash_serves
from model.kernels.merge import merge
from model.kernels.part import attention_in_blocks, hiding, part_attention


def attention(
    q: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, options: AttentionOptions = PLAIN
) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v (arXiv 1706.03762, section 3.2.1), as it is written.

    mask: (n_queries, n_keys) bool, true where a query sees a key; None where it sees them all
    options: another scale than 1 / sqrt(head_dim), and a soft cap; their window is the mask's business
    Returns (batch, n_heads, n_queries, head_dim). All faster ways compute the same; the tests hold them to that.
    """
    group = q.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    scores = options.scores(q @ keys.transpose(-1, -2), q.shape[-1])  # (batch, n_heads, n_queries, n_keys)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ values


def causal_mask(n_queries: int, n_keys: int, window: int | None = None, device: torch.device | str = "cpu") -> Tensor:
    """Which keys a query sees when the queries stand where the last keys do: all up to its own, or the last `window`.

    Returns (n_queries, n_keys) bool.
    """
    query_at = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]
    key_at = torch.arange(n_keys, device=device)
    seen = key_at <= query_at
    return seen if window is None else seen & (key_at > query_at - window)


def causal_attention(q: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions = PLAIN) -> Tensor:
    """Attention of the last `n_queries` positions over the keys up to and including their own that the options let be seen.

    Returns (batch, n_heads, n_queries, head_dim). What computes it, by the first of these cases that there is:

        a soft cap                      the definition, in blocks of queries: no kernel of PyTorch has one. The slowest way,
                                        since scores go through memory and those of hidden keys are computed too
        a window that hides keys        PyTorch's attention under a mask, as wide as window and queries, not as the prefix
        NVIDIA cards, 16-bit numbers    model/kernels/cuda_attention.py
        one query, or no prefix         PyTorch's attention: nothing to hide, or the plain causal triangle
        a chunk after a prefix          the prefix, which every query sees, and the chunk's own triangle, merged by their
                                        log-sum-exp (model/kernels/merge.py): no (chunk, prefix + chunk) mask
    """
    n_queries, n_keys = q.shape[2], keys.shape[2]
    n_prefix, mask = n_keys - n_queries, None
    pytorch = partial(F.scaled_dot_product_attention, scale=options.scale, enable_gqa=q.shape[1] != keys.shape[1])
    if options.window is not None and options.window < n_keys:
        n_seen = min(n_keys, n_queries + options.window - 1)  # no query looks further back
        mask = causal_mask(n_queries, n_seen, options.window, q.device)
        keys, values = keys[:, :, -n_seen:], values[:, :, -n_seen:]
    if options.soft_cap is not None:
        bias = None if mask is None else hiding(~mask, q.dtype)
        return attention_in_blocks(q, keys, values, mask is None, bias, options)[0]
    if mask is not None:
        return pytorch(q, keys, values, attn_mask=mask)
    if flash_serves(q):
        return chunk_attention(q, keys, values, options.scale)
    if n_queries == 1 or n_prefix == 0:
        return pytorch(q, keys, values, is_causal=n_queries > 1)
    prefix = part_attention(q, keys[:, :, :n_prefix], values[:, :, :n_prefix], causal=False, options=options)
    chunk = part_attention(q, keys[:, :, n_prefix:], values[:, :, n_prefix:], causal=True, options=options)
    return merge(prefix, chunk)[0]
