"""Attention of branches (model/branch.py) by FlashAttention: one call over the prefix, one over the rows' own tokens.

The kernel takes groups of queries, each with a range of keys of its own. Over the rows' own tokens, each row is a group.
Over the prefix, each row is a group for each piece of the prefix. A thread block reads all keys of its queries; with the
prefix in one piece, those of the longest row would still be at work when all others are done. On an H100, 16 prompts of 62
tokens after 4,096 to 65,536 tokens take Llama-3.1-8B 0.134 s with one piece and 0.101 s with eight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.kernels.cuda_attention import Groups, varlen_attention
from model.kernels.merge import Part, merge_all

MIN_PIECE = 4096  # keys
ENOUGH_GROUPS = 128  # over the prefix, for an even share of work; more rows are a group each
MAX_COPIES = 8192  # of a query, one for each piece: bounds the memory


class VarlenRows:
    """The rows of some branches; capacity as in Branches.

    ends, pads: as in Branches, (rows,) int64 on the device
    longest: the largest of the ends, at least 1
    base: where the first row's slots begin in the cache; those of the others follow, `capacity` slots for each
    """

    def __init__(self, ends: Tensor, pads: Tensor, longest: int, base: int, capacity: int):
        self.ends, self.pads, self.longest = ends, pads, longest
        self.own_starts = pads + torch.arange(base, base + len(ends) * capacity, capacity, device=ends.device)
        self._prefix: dict[int, tuple[Groups, Tensor]] = {}  # by number of queries: the same for all layers
        self._own: dict[tuple[int, int], Groups] = {}  # and of slots

    def over_prefix(self, q: Tensor, keys: Tensor, values: Tensor, scale: float | None) -> Part:
        """The query heads of one KV head stand side by side: enough queries for the kernel's tiles.

        q: (rows, n_heads, n_queries, head_dim); keys, values: of one layer's whole cache, (n_kv_heads, capacity, head_dim)
        """
        n_kv_heads, n_queries, head_dim = len(keys), q.shape[2], q.shape[3]
        grouped = q.unflatten(1, (n_kv_heads, -1)).permute(0, 2, 3, 1, 4)  # (rows, group, n_queries, n_kv_heads, head_dim)
        if n_queries not in self._prefix:
            self._prefix[n_queries] = self._pieces(n_queries, grouped.shape[1])
        groups, unseen = self._prefix[n_queries]
        copies = grouped.expand(len(unseen), *grouped.shape).reshape(-1, n_kv_heads, head_dim)
        out, lse = varlen_attention(copies, keys.transpose(0, 1), values.transpose(0, 1), groups, scale=scale)
        out, lse = out.view(-1, *grouped.shape), lse.T.view(-1, *grouped.shape[:-1])  # (pieces, rows, …)
        out, lse = merge_all(out, lse.masked_fill(unseen, float("-inf")))  # (rows, group, n_queries, n_kv_heads, …)
        return out.permute(0, 3, 1, 2, 4).flatten(1, 2), lse.permute(0, 3, 1, 2).flatten(1, 2)

    def _pieces(self, n_queries: int, n_heads: int) -> tuple[Groups, Tensor]:
        """For each piece and row a group of queries, `n_heads` of each token; and where a row sees nothing of a piece."""
        rows = len(self.ends)
        most = max(1, min(ENOUGH_GROUPS // rows, MAX_COPIES // (rows * n_queries)))
        piece = max(MIN_PIECE, -(-self.longest // most))
        starts = torch.arange(0, self.longest, piece, device=self.ends.device)[:, None]
        counts = (self.ends - starts).clamp(0, piece)  # (pieces, rows): keys that are seen
        groups = Groups.of_size(n_heads * n_queries, starts.expand(counts.shape).flatten(), counts.flatten())
        return groups, (counts == 0)[:, :, None, None, None]

    def over_own(self, q: Tensor, keys: Tensor, values: Tensor, n_slots: int, scale: float | None) -> Part:
        """Each row over its first `n_slots` slots but the pads. The queries stand at the last of them."""
        rows, _, n_queries, _ = q.shape
        if (n_queries, n_slots) not in self._own:
            self._own[n_queries, n_slots] = Groups.of_size(n_queries, self.own_starts, n_slots - self.pads)
        queries = q.transpose(1, 2).flatten(0, 1)  # (rows * n_queries, n_heads, head_dim)
        groups = self._own[n_queries, n_slots]
        out, lse = varlen_attention(queries, keys.transpose(0, 1), values.transpose(0, 1), groups, True, scale)
        return out.unflatten(0, (rows, -1)).transpose(1, 2), lse.unflatten(1, (rows, -1)).transpose(0, 1)
