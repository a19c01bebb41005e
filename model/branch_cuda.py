"""Attention of branches (model/branch.py) by FlashAttention: one call over the prefix, one over the rows' own tokens.

The kernel takes groups of queries, each of which looks at a range of keys of its own. Over the rows' own tokens that is a
group a row. Over the prefix it is a group for each row and piece of the prefix: a thread block reads all keys of its
queries, and one that had all that the longest row sees would still be at it when the others are done. On an H100, 16
prompts of 62 tokens behind 4,096 to 65,536 tokens take Llama-3.1-8B 0.134 s in one piece and 0.101 s in eight.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.attention_cuda import Groups, packed_attention
from model.merge import Part, merge_all

LEAST_PIECE = 4096  # keys
MOST_GROUPS = 128  # over the prefix: enough for an even share of work, and few enough copies of the queries


class PackedRows:
    """The rows of some branches; arguments as in Branches.

    base: where the first row's slots begin in the cache; those of the others follow, `capacity` slots for each
    """

    def __init__(self, ends: list[int], pads: list[int], base: int, capacity: int, device: torch.device):
        rows, longest = len(ends), max(*ends, 1)
        piece = max(LEAST_PIECE, -(-longest // max(1, MOST_GROUPS // rows)))
        starts = torch.arange(0, longest, piece, device=device)[:, None]
        # Of each piece, how many keys each row sees, and where they begin: (pieces, rows)
        self.counts = (torch.tensor(ends, device=device) - starts).clamp(0, piece)
        self.starts = starts.expand(self.counts.shape)
        self.pads = torch.tensor(pads, device=device)
        self.own_starts = self.pads + torch.arange(base, base + rows * capacity, capacity, device=device)
        self._groups: dict[tuple[str, int, int], Groups] = {}  # the same for all layers

    def over_prefix(self, q: Tensor, keys: Tensor, values: Tensor) -> Part:
        """The query heads that read one head of keys stand side by side: enough queries for the kernel's tiles.

        q: (rows, n_heads, n_queries, head_dim); keys, values: of one layer's whole cache, (n_kv_heads, capacity, head_dim)
        """
        rows, _, n_queries, head_dim = q.shape
        n_kv_heads, pieces = len(keys), len(self.counts)
        grouped = q.unflatten(1, (n_kv_heads, -1)).permute(0, 2, 3, 1, 4)  # (rows, group, n_queries, n_kv_heads, head_dim)
        size = grouped.shape[1] * n_queries
        copies = grouped.expand(pieces, *grouped.shape).reshape(-1, n_kv_heads, head_dim)
        groups = self._made("prefix", size, 0, self.starts, self.counts)
        out, lse = packed_attention(copies, keys.transpose(0, 1), values.transpose(0, 1), groups)
        out, lse = out.view(pieces, *grouped.shape), lse.T.view(pieces, *grouped.shape[:-1])
        unseen = (self.counts == 0)[:, :, None, None, None]
        out, lse = merge_all(out, lse.masked_fill(unseen, float("-inf")))  # (rows, group, n_queries, n_kv_heads, …)
        return out.permute(0, 3, 1, 2, 4).flatten(1, 2), lse.permute(0, 3, 1, 2).flatten(1, 2)

    def over_own(self, q: Tensor, keys: Tensor, values: Tensor, n_slots: int) -> Part:
        """Each row over its first `n_slots` slots but the pads. The queries stand at the last of them."""
        rows, _, n_queries, _ = q.shape
        groups = self._made("own", n_queries, n_slots, self.own_starts, n_slots - self.pads)
        queries = q.transpose(1, 2).flatten(0, 1)  # (rows * n_queries, n_heads, head_dim)
        out, lse = packed_attention(queries, keys.transpose(0, 1), values.transpose(0, 1), groups, causal=True)
        return out.unflatten(0, (rows, -1)).transpose(1, 2), lse.unflatten(1, (rows, -1)).transpose(0, 1)

    def _made(self, name: str, size: int, n_slots: int, starts: Tensor, counts: Tensor) -> Groups:
        key = (name, size, n_slots)
        if key not in self._groups:
            self._groups[key] = Groups.of_size(size, starts.flatten(), counts.flatten())
        return self._groups[key]
