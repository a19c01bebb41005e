"""Branches: several continuations of one cached prefix, computed together as rows of a batch.

A causal cache makes every continuation a function of the prefix it starts from. So margins of several chunks need not be
written one after the other: each is a row that sees the shared prefix up to its own chunk's end and then its own tokens.
The rows' private keys and values are written into the free space above the cache's `length`, which never moves:

    [ header | chunk 1 | chunk 2 | chunk 3 | row 1: prompt, margin | row 2: prompt, margin | row 3: … |·· free ··]
             row 1 sees up to ^         ^         ^ length
                         row 2 sees up to         |
                                   row 3 sees up to
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from model.attention import causal_mask
from model.cache import KVCache
from model.config import PLAIN, AttentionOptions
from model.kernels.cuda_attention import flash_serves
from model.kernels.cuda_branches import VarlenRows
from model.kernels.flash_rows import Places
from model.kernels.merge import Part, merge
from model.kernels.part import hiding, part_attention


class Branches:
    """A context (model/transformer.py) of rows over one cache.

    ends: row r sees the first ends[r] positions of the cache, then itself
    pads: prompts of different lengths are padded on the left to one length; row r's first pads[r] slots hold nothing
    capacity: slots of each row

    Raises ValueError for an end beyond what the cache holds, and when the rows do not fit above its length.
    """

    def __init__(self, cache: KVCache, ends: list[int], pads: list[int], capacity: int):
        if max(ends) > cache.length or min(ends) < 0:
            raise ValueError(f"Branches cannot begin at {ends}; the cache holds {cache.length} positions.")
        self.storage = cache.rows_above(len(ends), capacity)  # (n_layers, 2, rows, n_kv_heads, slots, head_dim)
        self.cache, self.ends, self.pads, self.capacity, self.base = cache, ends, pads, capacity, cache.length
        self.longest = max(*ends, 1)  # of the rows' prefixes; an int, since to read it from the device is to wait for it
        self.prefix_ends = torch.tensor(ends, device=self.storage.device)
        self.first_slots = torch.tensor(pads, device=self.storage.device)
        self.length = 0

    def positions(self, seq_len: int) -> Tensor:
        """(rows, seq_len) int64: each row continues from its own end."""
        slots = torch.arange(self.length, self.length + seq_len, device=self.first_slots.device)
        # Pads stand anywhere; nobody sees them.
        return ((self.prefix_ends - self.first_slots)[:, None] + slots).clamp(min=0)

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = PLAIN) -> Tensor:
        """As KVCache.attend, with batch = rows. The first call brings the prompts, later ones a token each."""
        return self.attend_with_lse(layer_idx, q, k, v, options)[0]

    def attend_with_lse(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Part:
        """The same with the log-sum-exp of the scores, (rows, n_heads, seq_len) float32.

        There are three ways to the same result. FlashAttention takes all rows as groups of their own lengths
        (model/kernels/cuda_branches.py). Elsewhere rows of one query each are computed together under a mask. Prompts
        elsewhere, and sliding windows everywhere, are computed row by row, which is the definition.
        """
        start, end = self.length, self.length + k.shape[2]
        own = self.storage[layer_idx, :, :, :, :end]  # (2, rows, n_kv_heads, end, head_dim)
        own[0, :, :, start:] = k
        own[1, :, :, start:] = v
        prefix = self.cache.layer(layer_idx)  # (2, 1, n_kv_heads, capacity, head_dim)
        if options.window is None and options.soft_cap is None and flash_serves(q):
            keys, values = prefix[:, 0]
            over_prefix = self._varlen.over_prefix(q, keys, values, options.scale)
            return merge(over_prefix, self._varlen.over_own(q, keys, values, end, options.scale))
        if options.window is None and q.shape[2] == 1:
            return merge(self._masked_prefix(q, *prefix, options), self._masked_own(q, own, options))
        out, lse = torch.zeros_like(q), torch.zeros(q.shape[:3], device=q.device)
        for row, (n_prefix, pad) in enumerate(zip(self.ends, self.pads, strict=True)):
            skip = max(pad - start, 0)
            seen = prefix[:, :, :, :n_prefix], own[:, row : row + 1, :, pad:]
            out[row, :, skip:], lse[row, :, skip:] = _row_attention(q[row : row + 1, :, skip:], *seen, options)
        return out, lse

    def advance(self, seq_len: int) -> None:
        self.length += seq_len

    def places(self) -> Places:
        """Where the next token of each row goes, for captured steps (model/graph.py)."""
        slots = [self.base + row * self.capacity + self.length for row in range(len(self.ends))]
        starts = [slot - self.length + pad for slot, pad in zip(slots, self.pads, strict=True)]
        return Places(self.ends, starts, slots)

    @cached_property
    def _varlen(self) -> VarlenRows:
        return VarlenRows(self.prefix_ends, self.first_slots, self.longest, self.base, self.capacity)

    # What `_row_attention` does row by row, for all rows in one call: over the prefix, and over the rows' own tokens.

    def _masked_prefix(self, q: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions) -> Part:
        """One query a row: side by side they are the queries of one sequence, and each key is read once for all."""
        keys, values = keys[:, :, : self.longest], values[:, :, : self.longest]
        out, lse = part_attention(q.transpose(0, 2), keys, values, False, self._prefix_bias, options)
        out, lse = out.transpose(0, 2), lse.transpose(0, 2)
        if 0 in self.ends:  # kernels differ in what they say of no keys; the sum over nothing is exp(-inf)
            lse = lse.masked_fill((self.prefix_ends == 0)[:, None, None], float("-inf"))
        return out, lse

    def _masked_own(self, q: Tensor, own: Tensor, options: AttentionOptions) -> Part:
        bias = self._own_bias[..., : own.shape[3]] if any(self.pads) else None
        return part_attention(q, *own, False, bias, options)

    @cached_property
    def _prefix_bias(self) -> Tensor:
        """(rows, length of the longest prefix): hides from each row what lies past its end."""
        keys = torch.arange(self.longest, device=self.prefix_ends.device)
        return hiding(keys >= self.prefix_ends[:, None], self.storage.dtype)

    @cached_property
    def _own_bias(self) -> Tensor:
        """(rows, 1, 1, capacity): hides the pads."""
        slots = torch.arange(self.capacity, device=self.first_slots.device)
        return hiding(slots < self.first_slots[:, None], self.storage.dtype)[:, None, None]


def _row_attention(q: Tensor, prefix: Tensor, own: Tensor, options: AttentionOptions) -> Part:
    """One row's queries over the prefix and over its own tokens, the last of which are those of the queries.

    q: (1, n_heads, n_queries, head_dim); prefix, own: keys and values, (2, 1, n_kv_heads, n_keys, head_dim)
    """
    n_queries, n_prefix, window = q.shape[2], prefix.shape[3], options.window
    if window is not None and window < n_prefix + own.shape[3]:
        near = prefix[:, :, :, max(0, n_prefix - window + 1) :]  # the first query sees one less of it than its window
        keys, values = torch.cat((near, own), dim=3)
        bias = hiding(~causal_mask(n_queries, keys.shape[2], window, q.device), q.dtype)
        return part_attention(q, keys, values, False, bias, options)
    of_own = part_attention(q, *own, causal=n_queries > 1, options=options)
    return merge(part_attention(q, *prefix, causal=False, options=options), of_own) if n_prefix else of_own


def padded_on_the_left(prompts: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """By how much each prompt is padded to the longest, and the padded prompts."""
    longest = max(map(len, prompts))
    pads = [longest - len(prompt) for prompt in prompts]
    return pads, [[0] * pad + list(prompt) for pad, prompt in zip(pads, prompts, strict=True)]
