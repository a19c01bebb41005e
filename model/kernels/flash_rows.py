"""One new token for each of several rows, in a step that is captured as a CUDA graph: attention by FlashAttention.

A captured step takes no arguments. So the places of the rows are kept on the device, and the step itself moves them.
Row r sees the cache up to ends[r], then its own tokens, from starts[r] to its newest one at slots[r]:

    [ prefix                                           | row 0's own | row 1's own | row 2's own |··· free ···]
             ^ ends[0]         ^ ends[1]               ^ ends[2]     ^ starts[1]  ^ slots[1]

Continuing the cache at its end is the case of one row with starts = ends = length.

One token a row gives a kernel too little to do. So the prefix is cut into pieces that thread blocks read side by side
(FlashDecoding). The cuts are at every multiple of some length and at every row's end. A piece is read once, for the queries
of all rows; what a row does not see is left out when the pieces are merged by their log-sum-exp.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.cache import KVCache
from model.config import AttentionOptions
from model.kernels.cuda_attention import Groups, varlen_attention
from model.kernels.part import attention_in_blocks, hiding
from model.transformer import Context, Rotary, run_layer

SHORTEST_PIECE, LONGEST_PIECE = 512, 4096  # keys


class Places(NamedTuple):
    """Where the rows of a decode step stand: row r sees the first ends[r] positions, then its own tokens from starts[r] on.

    ends, starts: as above
    slots: where the keys and values of each row's next token go; it has the position ends[r] + slots[r] - starts[r]
    """

    ends: list[int]
    starts: list[int]
    slots: list[int]


class DeviceRows:
    """A context (model/transformer.py) of one token a row whose places are on the device.

    rows: how many; if fewer are in use, the others are copies of the first and write the same to the same slots
    """

    def __init__(self, cache: KVCache, rows: int):
        self.cache, self.device = cache, cache.storage.device
        self.ends, self.starts, self.slots = torch.zeros(3, rows, dtype=torch.int32, device=self.device).unbind()

    def begin(self, places: Places, n_tokens: int) -> None:
        """Continue these rows by up to `n_tokens` tokens each. Raises ValueError when they do not fit into the cache."""
        n_keys = max(places.slots) + n_tokens
        if n_keys > self.cache.capacity:
            raise ValueError(
                f"The cache has {self.cache.capacity} positions and cannot take tokens up to position {n_keys}; "
                "allocate it with a larger capacity."
            )
        for tensor, values in zip((self.ends, self.starts, self.slots), places, strict=True):
            put(tensor, self._filled(values))

    def positions(self, seq_len: int) -> Tensor:
        """(rows, 1) int64: of the newest tokens."""
        return (self.ends + self.slots - self.starts).long()[:, None]

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
        """As KVCache.attend, with batch = rows and one token each."""
        raise NotImplementedError

    def advance(self, seq_len: int) -> None:
        self.slots.add_(seq_len)

    def run_layer(self, layer: nn.Module, layer_idx: int, x: Tensor, rotary: Rotary, context: Context) -> Tensor:
        """A RunLayer (model/transformer.py): how these rows want a layer run; by default as it is written."""
        return run_layer(layer, layer_idx, x, rotary, context)

    def _filled(self, values: list[int]) -> list[int]:
        return values + values[:1] * (len(self.slots) - len(values))


class FlashRows(DeviceRows):
    """Rows whose attention is FlashAttention; the step is captured as it is written.

    group: how many query heads read one KV head
    windows: the sliding windows that layers have
    """

    def __init__(self, cache: KVCache, rows: int, group: int, windows: set[int]):
        super().__init__(cache, rows)
        self.group, self.windows = group, windows
        capacity, n_kv_heads = cache.capacity, cache.storage.shape[2]
        processors = torch.cuda.get_device_properties(self.device).multi_processor_count if cache.storage.is_cuda else 1
        self.piece = min(max(SHORTEST_PIECE, capacity * n_kv_heads // (2 * processors)), LONGEST_PIECE)
        n_groups = -(-capacity // self.piece) + 2 * rows  # pieces, a cut at each row's end, the rows' own tokens
        starts, counts = torch.zeros(2, n_groups, dtype=torch.int32, device=self.device).unbind()
        self.pieces = Groups.of_size(rows * group, starts, counts)
        self.unseen = torch.zeros(n_groups, rows, dtype=torch.bool, device=self.device)
        self.windowed: dict[int, Groups] = {}
        self.newest = self.slots.long()

    def begin(self, places: Places, n_tokens: int) -> None:
        super().begin(places, n_tokens)
        ends, own_starts = self._filled(places.ends), self._filled(places.starts)
        cuts = sorted({*range(0, max(ends), self.piece), *ends, 0})
        starts, counts, unseen = [], [], []
        for start, end in zip(cuts, cuts[1:], strict=False):
            starts.append(start)
            counts.append(end - start)
            unseen.append([end > row_end for row_end in ends])
        n_empty = len(self.unseen) - len(starts) - len(ends)
        starts += [0] * n_empty + own_starts
        counts += [0] * (n_empty + len(ends))  # `positions` counts the rows' own tokens
        unseen += [[True] * len(ends)] * n_empty
        unseen += [[row != other for other in range(len(ends))] for row in range(len(ends))]
        put(self.pieces.key_starts[:-1], starts)
        put(self.pieces.key_counts, counts)
        put(self.unseen, unseen)

    def positions(self, seq_len: int) -> Tensor:
        """As DeviceRows.positions. A step begins here, so the keys are counted here, once for all layers."""
        self.newest = self.slots.long()
        n_own = self.slots + 1 - self.starts
        self.pieces.key_counts[-len(n_own) :] = n_own
        for window in self.windows:
            first = self.ends + n_own - window  # the first position that the newest token sees
            of_prefix = torch.minimum(first.clamp(min=0), self.ends)
            of_own = (first - self.ends).clamp(min=0)
            starts = torch.cat((of_prefix, self.starts + of_own))
            self.windowed[window] = Groups.of_size(self.group, starts, torch.cat((self.ends - of_prefix, n_own - of_own)))
        return super().positions(seq_len)

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
        keys, values = self.cache.storage[layer_idx].transpose(1, 2)  # each (capacity, n_kv_heads, head_dim)
        keys.index_copy_(0, self.newest, k[:, :, 0])
        values.index_copy_(0, self.newest, v[:, :, 0])
        if options.soft_cap is not None:
            return self._by_definition(layer_idx, q, options)
        queries = q[:, :, 0].unflatten(1, (-1, self.group)).transpose(1, 2)  # (rows, group, n_kv_heads, head_dim)
        if options.window is None:
            groups, unseen = self.pieces, self.unseen  # each with all rows' queries
        else:
            # Two for each row, over prefix and own tokens, with that row's queries alone.
            groups = self.windowed[options.window]
            unseen = (groups.key_counts == 0).view(2, -1)
        copies = queries.expand(len(unseen), *queries.shape).reshape(-1, *queries.shape[2:])
        out, lse = varlen_attention(copies, keys, values, groups, scale=options.scale)
        out, lse = out.view(-1, *queries.shape), lse.T.view(-1, *queries.shape[:-1])  # (parts, rows, group, n_kv_heads, …)
        shares = lse.masked_fill(unseen[:, :, None, None], float("-inf")).softmax(dim=0)  # each row sees itself at least
        out = (out * shares.unsqueeze(-1)).sum(dim=0, dtype=q.dtype)
        return out.transpose(1, 2).flatten(1, 2)[:, :, None]  # (rows, n_heads, 1, head_dim)

    def _by_definition(self, layer_idx: int, q: Tensor, options: AttentionOptions) -> Tensor:
        """For what no kernel has. A captured step has one shape, so it reads the cache to its capacity, however full."""
        key = torch.arange(self.cache.capacity, device=self.device)
        seen = sees(*(places[:, None] for places in (self.ends, self.starts, self.slots)), key, options.window)
        queries, bias = q.transpose(0, 2), hiding(~seen, q.dtype)  # the rows as the queries of one sequence
        return attention_in_blocks(queries, *self.cache.layer(layer_idx), False, bias, options)[0].transpose(0, 2)


def sees(end: Tensor, start: Tensor, slot: Tensor, key: Tensor, window: int | None) -> Tensor:
    """Whether a row with these places sees the key at a position of the cache; see the picture above.

    window: how many tokens back a row sees, its newest one included; None for all
    """
    prefix, own = key < end, (key >= start) & (key <= slot)
    if window is not None:
        prefix = prefix & (slot - start + end - key < window)
        own = own & (slot - key < window)
    return prefix | own


def put(tensor: Tensor, values: list) -> None:
    """Fill a tensor on the device without waiting for it. Its values are not pinned, so they are read at once."""
    tensor.copy_(torch.tensor(values, dtype=tensor.dtype), non_blocking=True)
