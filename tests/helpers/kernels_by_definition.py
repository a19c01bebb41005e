"""CUDA kernels by their definition, to stand in for them on the CPU."""

from __future__ import annotations

import torch


def varlen_attention(q, keys, values, groups, causal=False, scale=None):
    """model.kernels.cuda_attention.varlen_attention, with what the kernel gives for a query that sees no key."""
    query_starts, key_starts, key_counts, max_queries = groups
    assert len(query_starts) == len(key_starts) == len(key_counts) + 1
    out, lse = torch.zeros_like(q), torch.full((q.shape[1], q.shape[0]), float("inf"))
    keys, values = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (keys, values))
    for group, count in enumerate(key_counts.tolist()):
        first, last = query_starts[group : group + 2].tolist()
        assert last - first <= max_queries
        for query in range(first, last):
            n_seen = count - (last - 1 - query) if causal else count
            if n_seen > 0:
                seen = slice(key_starts[group], key_starts[group] + n_seen)
                scores = torch.einsum("hd,khd->hk", q[query], keys[seen]) * (scale or q.shape[-1] ** -0.5)
                lse[:, query] = scores.logsumexp(-1)
                out[query] = torch.einsum("hk,khd->hd", scores.softmax(-1), values[seen])
    return out, lse
