"""Decoding at the memory's speed on NVIDIA cards.

A decode step reads all weights and the whole cache to compute one token per row; everything else only stands in the way.
Here one step is captured as a CUDA graph and replayed:

    no host in the loop   the next positions, the slots to write and how far each row may look are tensors on the device,
                          which the graph itself counts up
    few kernels           the parts of a layer before and after attention are fused by torch.compile, one compilation for
                          all layers
    a full card           one token per row gives attention too little to do, so the keys are cut into pieces that are read
                          side by side and merged by their log-sum-exp (FlashDecoding)

There are two decoders, which differ in what a step looks at. `TailDecoder` continues the cache at its end: one row, one
range of keys, cut by the kernel itself. `BranchDecoder` continues branches, for which the pieces are ours: they end where
some row's view of the prefix ends, so a row sees a piece wholly or not at all, and what it does not see gets the weight
exp(-inf) = 0 in the merge. All rows look at a piece together, so the shared prefix is read once per step however many rows
there are. Each row's own tokens are one more piece:

    [ piece | piece | piece | piece | … | piece ][ row 1's own ][ row 2's own ]
      seen by rows 1, 2       seen by row 2
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.attention_cuda import packed_attention, single_query_attention
from model.branch import Branches
from model.cache import KVCache
from model.causal_lm import MOST_COMPILATIONS, Attend, CausalLM, run_eagerly

LEAST_BOUND = 4096  # keys


class GraphDecoder:
    """One step of `rows` rows over one cache, as a CUDA graph. Subclasses say what a step attends to.

    It is a context itself (model/causal_lm.py), of one token per row.
    """

    def __init__(self, model: CausalLM, cache: KVCache, rows: int):
        device = cache.storage.device
        self.model, self.cache, self.rows, self.n_rows = model, cache, rows, rows
        self.tokens = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self.position = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        self.slot = torch.zeros(rows, dtype=torch.int64, device=device)  # where in the cache a row's next token goes
        self.key_counts = torch.zeros(0, dtype=torch.int32, device=device)  # of the ranges of keys that a step looks at
        self.bound = 0  # the graph in use serves up to so many keys; 0: all that there may be
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor]] = {}  # by bound, with the logits that it writes

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens: (rows begun,) int64. Returns logits of the next ones, (rows begun, vocab_size), until the next call."""
        self.tokens.copy_(torch.cat((tokens, tokens[:1].expand(self.rows - self.n_rows)))[:, None])
        if self.bound not in self.graphs:
            self.graphs[self.bound] = self._capture()
        graph, logits = self.graphs[self.bound]
        graph.replay()
        return logits[: self.n_rows]

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        state = (self.position, self.slot, self.key_counts)
        before = [tensor.clone() for tensor in state]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch._dynamo.config.patch(recompile_limit=MOST_COMPILATIONS):
            # Compiles, and lets libraries allocate what a capture must not. What it stores, the first replay stores anew.
            self._step()
        torch.cuda.current_stream().wait_stream(stream)
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._step()
        return graph, logits

    def _step(self) -> Tensor:
        x = self.model.model(self.tokens, self, _run_layer)  # (rows, 1, hidden_size)
        return self.model.lm_head(x)[:, 0]

    def positions(self, seq_len: int) -> Tensor:
        return self.position

    def advance(self, seq_len: int) -> None:
        self.position += 1
        self.slot += 1

    def _keys_and_values(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store the step's; return all of them, each (capacity, n_kv_heads, head_dim)."""
        kv = self.cache.storage[layer, :, 0]  # (2, n_kv_heads, capacity, head_dim)
        torch._dynamo.maybe_mark_dynamic(kv, 2)  # one compilation for caches of all capacities
        _store(kv, self.slot, k, v)
        return kv.transpose(1, 2).unbind(0)


class TailDecoder(GraphDecoder):
    """Continues what the cache holds: see KVCache, with the length on the device."""

    def __init__(self, model: CausalLM, cache: KVCache):
        super().__init__(model, cache, rows=1)
        self.key_counts = self.key_counts.new_zeros(1)
        self.query_starts = self.key_counts.new_tensor([0, 1])
        self.key_starts = self.key_counts.new_tensor([0, cache.capacity])

    def begin(self, max_tokens: int) -> None:
        """Continue from the cache's length with up to `max_tokens` tokens."""
        length = self.cache.length
        self.bound = min(graph_bound(length + max_tokens), self.cache.capacity)
        for tensor in (self.position, self.slot, self.key_counts):
            tensor.fill_(length)

    def positions(self, seq_len: int) -> Tensor:
        self.key_counts += 1  # the token that this step writes
        return self.position

    @torch.compiler.disable
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        """q: (1, n_heads, 1, head_dim); k, v: (1, n_kv_heads, 1, head_dim)."""
        keys, values = self._keys_and_values(layer, k, v)
        ranges = self.query_starts, self.key_starts, self.key_counts
        return single_query_attention(q[:, :, 0], keys, values, *ranges, self.bound)[:, :, None]


class BranchDecoder(GraphDecoder):
    """Steps of up to `rows` branches. Rows that are left over do what row 0 does, to the same slots."""

    def __init__(self, model: CausalLM, cache: KVCache, rows: int):
        super().__init__(model, cache, rows)
        config, device = model.config, cache.storage.device
        self.group = config.num_attention_heads // config.num_key_value_heads
        # As many pieces as make two blocks for each multiprocessor (more would wait for a second round), and one at least
        # for each row's end.
        blocks = 2 * torch.cuda.get_device_properties(device).multi_processor_count
        self.n_pieces = max(rows, blocks // config.num_key_value_heads)
        n_parts = self.n_pieces + rows
        self.key_starts = torch.zeros(n_parts + 1, dtype=torch.int32, device=device)
        self.key_counts = torch.zeros(n_parts, dtype=torch.int32, device=device)
        self.hidden = torch.zeros(self.n_pieces + 1, rows, dtype=torch.bool, device=device)  # + 1: a row's own tokens
        # All rows' queries look at each piece of the prefix; then each row's at its own.
        per_piece = [rows * self.group] * self.n_pieces + [self.group] * rows
        self.query_starts = torch.tensor([0, *per_piece], device=device).cumsum(0).to(torch.int32)

    def begin(self, branches: Branches) -> None:
        """Continue these branches, whose prompts have been read."""
        self.n_rows = len(branches.ends)
        rows = [*range(self.n_rows), *[0] * (self.rows - self.n_rows)]
        ends, pads = ([values[row] for row in rows] for values in (branches.ends, branches.pads))
        starts = [branches.base + row * branches.capacity for row in rows]
        pieces = prefix_pieces(ends, self.n_pieces)
        own = [start + pad for start, pad in zip(starts, pads, strict=True)]
        counts = [end - start for start, end in pieces] + [branches.length - pad for pad in pads]
        hidden = [[start == end or end > row_end for row_end in ends] for start, end in pieces]
        self.key_starts.copy_(torch.tensor([start for start, _ in pieces] + own + [self.cache.capacity]))
        self.key_counts.copy_(torch.tensor(counts))
        self.hidden.copy_(torch.tensor([*hidden, [False] * self.rows]))
        at = [[end - pad + branches.length] for end, pad in zip(ends, pads, strict=True)]
        self.position.copy_(torch.tensor(at))
        self.slot.copy_(torch.tensor([start + branches.length for start in starts]))

    def positions(self, seq_len: int) -> Tensor:
        self.key_counts[self.n_pieces :] += 1  # the token that this step writes
        return self.position

    @torch.compiler.disable
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        """q: (rows, n_heads, 1, head_dim); k, v: (rows, n_kv_heads, 1, head_dim)."""
        keys, values = self._keys_and_values(layer, k, v)
        # All rows' queries for each piece of the prefix, and once more, row by row, for their own tokens.
        n_copies = self.n_pieces + 1
        by_row = q.unflatten(1, (-1, self.group))[:, :, :, 0].transpose(1, 2)  # (rows, group, n_kv_heads, head_dim)
        ranges = self.query_starts, self.key_starts, self.key_counts
        out, lse = packed_attention(_copies(by_row, n_copies), keys, values, *ranges, self.rows * self.group)
        out = out.unflatten(0, (n_copies, self.rows, self.group))
        lse = lse.unflatten(1, (n_copies, self.rows, self.group))
        return _merge_pieces(out, lse, self.hidden).view(q.shape)


@torch.compile(dynamic=False)
def _run_layer(layer: nn.Module, x: Tensor, rotary: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
    return run_eagerly(layer, x, rotary, attend)


@torch.compile(dynamic=False)
def _store(kv: Tensor, slot: Tensor, k: Tensor, v: Tensor) -> None:
    """kv: (2, n_kv_heads, capacity, head_dim), slot: (rows,), k, v: (rows, n_kv_heads, 1, head_dim)."""
    k, v = k[:, :, 0].transpose(0, 1), v[:, :, 0].transpose(0, 1)  # (n_kv_heads, rows, head_dim)
    is_key = torch.arange(2, device=slot.device)[:, None, None, None] == 0
    kv[:, :, slot] = torch.where(is_key, k, v)  # unlike torch.stack, this becomes one kernel with the store


@torch.compile(dynamic=False)
def _copies(q: Tensor, n: int) -> Tensor:
    """(rows, group, n_kv_heads, head_dim) -> (n * rows * group, n_kv_heads, head_dim)."""
    return q.expand(n, *q.shape).flatten(0, 2)


@torch.compile(dynamic=False)
def _merge_pieces(out: Tensor, lse: Tensor, hidden: Tensor) -> Tensor:
    """out: (pieces, rows, group, n_kv_heads, head_dim), lse: (n_kv_heads, pieces, rows, group), hidden: (pieces, rows)."""
    lse = lse.masked_fill(hidden[None, :, :, None], float("-inf"))
    weights = lse.softmax(dim=1).permute(1, 2, 3, 0).unsqueeze(-1)  # (pieces, rows, group, n_kv_heads, 1)
    return (out * weights).sum(dim=0).to(out.dtype).transpose(1, 2).contiguous()  # (rows, n_kv_heads, group, head_dim)


def prefix_pieces(ends: list[int], n_pieces: int) -> list[tuple[int, int]]:
    """Cut the prefix into exactly `n_pieces` ranges [start, end), so that every row's end is a border.

    The parts between borders get pieces by their length; what is left over is empty. `n_pieces` is at least len(ends).
    """
    borders = sorted({0, *ends})
    spans = list(zip(borders[:-1], borders[1:], strict=True))
    spare, total = n_pieces - len(spans), borders[-1]
    pieces = []
    for start, end in spans:
        parts = 1 + (end - start) * spare // max(total, 1)
        cuts = [start + (end - start) * i // parts for i in range(parts + 1)]
        pieces += zip(cuts[:-1], cuts[1:], strict=True)
    return pieces + [(total, total)] * (n_pieces - len(pieces))


def graph_bound(n_keys: int) -> int:
    """A graph for up to n_keys keys or somewhat more: 2^i or 1.5 * 2^i, so that few graphs serve all lengths.

    The kernel shares out this number among its blocks, not the true one: a third of them may have nothing to do.
    """
    bound = max(LEAST_BOUND, 1 << (n_keys - 1).bit_length())
    return bound * 3 // 4 if LEAST_BOUND < bound and n_keys <= bound * 3 // 4 else bound
