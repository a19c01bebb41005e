"""Attention over a part of the keys, with the log-sum-exp (LSE) of its scores, by which parts are merged.

Shapes as in model/attention.py; an LSE is (batch, n_heads, n_queries) float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.config import PLAIN, AttentionOptions
from model.kernels.cuda_attention import flash_attention, flash_serves
from model.kernels.merge import Part

MAX_SCORES = 2**27  # float32 numbers, half a GiB


def part_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    causal: bool,
    bias: Tensor | None = None,
    options: AttentionOptions = PLAIN,
) -> Part:
    """Attention over some of the keys. `causal` is for queries that stand where the last of these keys do.

    bias: added to the scores, in q's dtype, with the shape (n_queries, n_keys) or (batch, 1, n_queries, n_keys)
    options: scale and soft cap; the window is the caller's business
    Returns the output, as q, and its LSE; 0 and -inf for a query that sees no key.
    """
    if options.soft_cap is not None:
        return attention_in_blocks(q, keys, values, causal, bias, options)
    if q.device.type == "cpu" and (not causal or q.shape[2] == keys.shape[2]):
        flash_for_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return flash_for_cpu(q, keys, values, 0.0, causal, attn_mask=bias, scale=options.scale)
    if flash_serves(q) and bias is None:
        return flash_attention(q, keys, values, causal, options.scale)
    return attention_in_blocks(q, keys, values, causal, bias, options)


def hiding(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias that hides some keys: -inf where `hidden` is true, and 0."""
    return torch.zeros_like(hidden, dtype=dtype).masked_fill(hidden, float("-inf"))


def attention_in_blocks(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    causal: bool,
    bias: Tensor | None = None,
    options: AttentionOptions = PLAIN,
) -> Part:
    """By the definition, in blocks of queries: a chunk's scores against a long prefix never stand in memory as a whole."""
    n_kv_heads, n_queries, n_keys = keys.shape[1], q.shape[2], keys.shape[2]

    def with_keys(x: Tensor, of_keys: Tensor) -> Tensor:
        """Products of each head's rows with its KV head's matrix, which is not copied for all the heads that share it."""
        grouped = x.unflatten(1, (n_kv_heads, -1))  # (batch, n_kv_heads, group, block, …)
        return (grouped.flatten(2, 3) @ of_keys).unflatten(2, grouped.shape[2:4]).flatten(1, 2)

    key_at = torch.arange(n_keys, device=q.device)
    parts = []
    for block in torch.arange(n_queries, device=q.device).split(max(1, MAX_SCORES // (q.shape[1] * n_keys))):
        products = with_keys(q[:, :, block], keys.transpose(-1, -2)).float()  # (batch, n_heads, block, n_keys)
        scores = options.scores(products, q.shape[-1])
        if bias is not None:
            scores = scores + bias[..., block, :]
        if causal:
            query_at = block[:, None] + n_keys - n_queries
            scores = scores.masked_fill(key_at > query_at, float("-inf"))
        lse = scores.logsumexp(dim=-1)
        finite = lse.clamp(min=torch.finfo(lse.dtype).min)  # of a query that sees no key it is -inf
        parts.append((with_keys((scores - finite.unsqueeze(-1)).exp().to(values.dtype), values), lse))
    outputs, lses = zip(*parts, strict=True)
    return torch.cat(outputs, dim=2), torch.cat(lses, dim=2)
