"""Attention of new queries over keys that are already there, without a mask where the platform has a causal kernel.

Attention can be computed over parts of the keys and merged (model/kernels/merge.py). So a chunk that follows a long prefix
needs no (chunk, prefix + chunk) mask: the prefix is seen by every query, and the chunk itself is the plain causal triangle.

Shapes here: queries (batch, n_heads, n_queries, head_dim), keys and values (batch, n_kv_heads, n_keys, head_dim), LSE
(batch, n_heads, n_queries) float32. With grouped-query attention n_heads is a multiple of n_kv_heads and query head h reads
key head h // (n_heads / n_kv_heads); keys are never expanded where the kernel can read them as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.cuda_attention import causal_attention_cuda, flash_attention, flash_serves
from model.kernels.merge import Part, merge

MAX_SCORES = 2**27  # float32 numbers, half a GiB


def causal_attention(q: Tensor, keys: Tensor, values: Tensor, window: int | None = None) -> Tensor:
    """Attention of the last `n_queries` positions over all keys up to and including their own.

    window: how many positions a query sees, its own included; None for all.
    Returns (batch, n_heads, n_queries, head_dim).
    """
    n_queries, n_keys = q.shape[2], keys.shape[2]
    n_prefix = n_keys - n_queries
    if window is not None and window < n_keys:
        return _windowed(q, keys, values, window)
    if flash_serves(q):
        return causal_attention_cuda(q, keys, values)
    if n_queries == 1 or n_prefix == 0:
        return F.scaled_dot_product_attention(q, keys, values, is_causal=n_queries > 1, enable_gqa=_grouped(q, keys))
    prefix = attention_with_lse(q, keys[:, :, :n_prefix], values[:, :, :n_prefix], causal=False)
    chunk = attention_with_lse(q, keys[:, :, n_prefix:], values[:, :, n_prefix:], causal=True)
    return merge(prefix, chunk)[0]


def attention_with_lse(q: Tensor, keys: Tensor, values: Tensor, causal: bool, bias: Tensor | None = None) -> Part:
    """Attention and the log-sum-exp of its scores. `causal` is for queries that stand where the last keys do.

    bias: added to the scores, in q's dtype, with the shape (n_queries, n_keys) or (batch, 1, n_queries, n_keys)
    """
    if q.device.type == "cpu" and (not causal or q.shape[2] == keys.shape[2]):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, keys, values, 0.0, causal, attn_mask=bias)
    if flash_serves(q) and bias is None:
        return flash_attention(q, keys, values, causal)
    return _attention_by_definition(q, keys, values, causal, bias)


def _attention_by_definition(q: Tensor, keys: Tensor, values: Tensor, causal: bool, bias: Tensor | None = None) -> Part:
    """In blocks of queries, so that the scores of a chunk against a long prefix never stand in memory as a whole."""
    groups, n_queries, n_keys = q.shape[1] // keys.shape[1], q.shape[2], keys.shape[2]
    keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    key_at = torch.arange(n_keys, device=q.device)
    parts = []
    for block in torch.arange(n_queries, device=q.device).split(max(1, MAX_SCORES // (q.shape[1] * n_keys))):
        scores = (q[:, :, block] @ keys.transpose(-1, -2)).float() * q.shape[-1] ** -0.5  # (batch, n_heads, block, n_keys)
        if bias is not None:
            scores = scores + bias[..., block, :]
        if causal:
            query_at = block[:, None] + n_keys - n_queries
            scores = scores.masked_fill(key_at > query_at, float("-inf"))
        lse = scores.logsumexp(dim=-1)
        finite = lse.clamp(min=torch.finfo(lse.dtype).min)  # a query that sees no key gets 0, and an LSE of -inf
        parts.append(((scores - finite.unsqueeze(-1)).exp().to(values.dtype) @ values, lse))
    outputs, lses = zip(*parts, strict=True)
    return torch.cat(outputs, dim=2), torch.cat(lses, dim=2)


def _windowed(q: Tensor, keys: Tensor, values: Tensor, window: int) -> Tensor:
    """Sliding-window attention: the mask spans the window and the queries, never the whole context."""
    n_queries = q.shape[2]
    n_seen = min(keys.shape[2], n_queries + window - 1)  # no query looks further back
    keys, values = keys[:, :, -n_seen:], values[:, :, -n_seen:]
    query_at = torch.arange(n_seen - n_queries, n_seen, device=q.device)[:, None]
    key_at = torch.arange(n_seen, device=q.device)[None, :]
    mask = (key_at <= query_at) & (key_at > query_at - window)  # (n_queries, n_seen)
    return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=_grouped(q, keys))


def _grouped(q: Tensor, keys: Tensor) -> bool:
    return q.shape[1] != keys.shape[1]
