"""Decoding at the memory's speed on NVIDIA cards.

A decode step reads all weights and the whole cache to compute one token per row; everything else only stands in the way.
Here one step is captured as a CUDA graph and replayed:

    no host in the loop   the rows' positions are tensors on the device, and the graph itself advances them
    few kernels           a layer is compiled as a whole, once for all layers, so that only the matrix products and
                          attention are kernels of some length (products with one row: model/kernels/gemv.py)
    a full card           one token per row gives attention too little to do, so the keys are shared out among thread
                          blocks that read them side by side, and the results merged by their log-sum-exp (FlashDecoding);
                          with FlexAttention (arXiv 2412.05496), whose kernel does so for any mask

All rows look at all keys together, so the shared prefix is read once per step for up to `max_rows` rows, and the mask says
who sees what. Row r sees the cache up to ends[r], then its own tokens, from starts[r] to slots[r], its newest one's:

    [ prefix                                           | row 0's own | row 1's own | row 2's own |··· free ···]
             ^ ends[0]         ^ ends[1]               ^ ends[2]     ^ starts[1]  ^ slots[1]

and the newest token of row r has the position ends[r] + slots[r] - starts[r]. Continuing the cache at its end is the case
of one row with starts = ends = length. Keys beyond what the rows may write at most are not read, whatever the capacity.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from model.cache import KVCache
from model.config import ModelConfig
from model.kernels.gemv import GemvMode
from model.transformer import MAX_COMPILATIONS, CausalLM

KEY_BLOCK = 128  # keys; how many such blocks from the cache's beginning are read is known to the device only
CAPTURE_BYTES = 2**28  # more than the intermediate results of a step take


class RowState(NamedTuple):
    """Where each row stands, on the device."""

    ends: Tensor  # (rows,) int32
    starts: Tensor  # (rows,) int32
    slots: Tensor  # (rows,) int32
    blocks: Tensor  # (blocks of keys in the whole cache,) int32: their numbers
    n_blocks: Tensor  # (1, 1, 1) int32: of these, how many are looked at


class GraphDecoder:
    """One step of up to `rows` rows over one cache. Unused rows are copies of row 0 and write the same to the same slots.

    rows: a power of two, and at most `max_rows`
    """

    def __init__(self, model: CausalLM, cache: KVCache, rows: int):
        device = cache.storage.device
        self.model, self.cache, self.device, self.n_begun = model, cache, device, rows
        self.tokens = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        blocks = torch.arange(-(-cache.capacity // KEY_BLOCK), dtype=torch.int32, device=device)
        torch._dynamo.maybe_mark_dynamic(blocks, 0)  # one compilation for caches of all capacities
        ends, starts, slots = torch.zeros(3, rows, dtype=torch.int32, device=device).unbind()
        self.state = RowState(ends, starts, slots, blocks, blocks.new_zeros(1, 1, 1))
        self.options = kernel_options(model.config, rows, device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits: Tensor | None = None  # (rows, vocab_size), where the graph writes them

    def begin(self, ends: list[int], starts: list[int], slots: list[int], n_tokens: int) -> None:
        """Continue these rows, each by up to `n_tokens` tokens.

        Raises ValueError when they do not fit into the cache.
        """
        n_keys = max(slots) + n_tokens
        if n_keys > self.cache.capacity:
            raise ValueError(
                f"The cache has {self.cache.capacity} positions and cannot take tokens up to position {n_keys}; "
                "allocate it with a larger capacity."
            )
        self.n_begun = len(ends)
        state = self.state
        for tensor, values in ((state.ends, ends), (state.starts, starts), (state.slots, slots)):
            filled = torch.tensor(values + values[:1] * (len(tensor) - len(values)), dtype=torch.int32)
            tensor.copy_(filled, non_blocking=True)  # from memory that is not pinned: it is read before this returns
        state.n_blocks.fill_(-(-n_keys // KEY_BLOCK))

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens: (rows begun,) int64. Returns logits of the next ones, (rows begun, vocab_size), until the next call."""
        self.tokens[: self.n_begun, 0] = tokens
        self.tokens[self.n_begun :, 0] = tokens[0]
        if self.graph is None:
            self._capture()
        self.graph.replay()
        return self.logits[: self.n_begun]

    def _capture(self) -> None:
        # By hand, as torch.cuda.graph would give back all memory that is kept for later. Each capture has its own stream,
        # because libraries keep a workspace for each stream, and a graph goes on using it.
        slots, graph, stream = self.state.slots.clone(), torch.cuda.CUDAGraph(), torch.cuda.Stream(self.device)
        current = torch.cuda.current_stream(self.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream), torch._dynamo.config.patch(recompile_limit=MAX_COMPILATIONS):
            # Compiles, and lets libraries allocate what a capture must not. What it stores, the first replay stores anew.
            self._step()
            self.state.slots.copy_(slots)
            if torch.cuda.mem_get_info(self.device)[0] < CAPTURE_BYTES:
                torch.cuda.empty_cache()  # waits for the device; a capture cannot take back what is only kept for later
            graph.capture_begin()
            try:
                self.logits = self._step()
            finally:
                graph.capture_end()
        current.wait_stream(stream)
        self.graph = graph

    def _step(self) -> Tensor:
        state, model = self.state, self.model.model
        positions = state.ends + state.slots - state.starts
        x, rotary = model.embed(self.tokens, positions[:, None])  # not compiled, which takes more than a second
        for layer, kv in zip(model.layers, self.cache.storage[:, :, 0], strict=True):
            torch._dynamo.maybe_mark_dynamic(kv, 2)
            x = _layer(layer, x, rotary, kv, state, self.options)
        state.slots.add_(1)
        return self.model.lm_head(model.norm(x[:, 0]))


@torch.compile(dynamic=False, fullgraph=True)
def _layer(
    layer: nn.Module, x: Tensor, rotary: tuple[Tensor, Tensor], kv: Tensor, state: RowState, options: dict[str, Any]
) -> Tensor:
    """x: (rows, 1, hidden_size), as what is returned; kv: the layer's, (2, n_kv_heads, capacity, head_dim)."""

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        k, v = k[:, :, 0].transpose(0, 1), v[:, :, 0].transpose(0, 1)  # (n_kv_heads, rows, head_dim)
        is_key = torch.arange(2, device=x.device)[:, None, None, None] == 0
        kv[:, :, state.slots] = torch.where(is_key, k, v)  # unlike torch.stack, this becomes one kernel with the store
        keys, values = kv.unsqueeze(1)  # (1, n_kv_heads, capacity, head_dim)
        # The query heads of one KV head next to each other; the kernel wants a power of two of them.
        n_kv_heads, group = keys.shape[1], q.shape[1] // keys.shape[1]
        spare = next_power_of_two(group) - group
        queries = q[:, :, 0].transpose(0, 1).reshape(1, n_kv_heads, group, *x.shape[:1], -1)
        queries = F.pad(queries, (0, 0, 0, 0, 0, spare)).flatten(1, 2)  # (1, heads, rows, head_dim)
        mask = block_mask(state, keys.shape[2], window)
        out = flex_attention(queries, keys, values, block_mask=mask, enable_gqa=True, kernel_options=options)
        out = out.reshape(n_kv_heads, group + spare, *out.shape[2:])[:, :group].flatten(0, 1)  # (n_heads, rows, head_dim)
        return out.transpose(0, 1)[:, :, None]

    with GemvMode() if len(x) == 1 else nullcontext():
        return layer(x, rotary, attend)


def block_mask(state: RowState, capacity: int, window: int | None) -> BlockMask:
    """Who sees what; see the picture above.

    window: how many tokens back a row sees, its newest one included; None for all
    """

    def sees(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        end, start, slot = state.ends[row], state.starts[row], state.slots[row]
        prefix, own = key < end, (key >= start) & (key <= slot)
        if window is not None:
            prefix = prefix & (slot - start + end - key < window)
            own = own & (slot - key < window)
        return prefix | own

    return BlockMask.from_kv_blocks(
        state.n_blocks,
        state.blocks[None, None, None],
        BLOCK_SIZE=KEY_BLOCK,
        mask_mod=sees,
        seq_lengths=(len(state.slots), capacity),
        compute_q_blocks=False,
    )


def next_power_of_two(n: int) -> int:
    """The least that is not less than n."""
    return 1 << (n - 1).bit_length()


def group_size(config: ModelConfig) -> int:
    """How many query heads read one KV head, filled up as the kernel wants it."""
    return next_power_of_two(config.num_attention_heads // config.num_key_value_heads)


def max_rows(config: ModelConfig) -> int:
    """The most rows of one decoder: the kernel takes at most 128 queries for one KV head, and fewer than 128 rows."""
    return max(1, min(64, 128 // group_size(config)))


def kernel_options(config: ModelConfig, rows: int, device: torch.device) -> dict[str, Any]:
    """How FlexAttention's kernel for few queries is cut.

    BLOCK_N: keys of a tile. num_stages: tiles that are on their way at a time; the kernel's own choice is to wait for each.
    SPLIT_KV: parts that the keys of one KV head are split into. For one row a thread block with large tiles for each
    multiprocessor is best, for several rows two with small ones; the tiles are smaller still where a thread block has less
    shared memory. Microseconds on an H200, bfloat16, 8 KV heads, 65,536 keys: one row 67 (its own choice 116), 16 rows 80
    (212). Some of the names are no public interface, hence the upper bound on torch's version.
    """
    if device.type != "cuda":
        return {}
    properties, n_kv_heads = torch.cuda.get_device_properties(device), config.num_key_value_heads
    n_queries = rows * group_size(config)  # for one KV head
    row_bytes = 2 * next_power_of_two(config.head_dim)
    tile, thread_blocks, stages = (128, 1, 3) if rows == 1 else (64, 2, 3)

    def fits() -> bool:
        return (stages * 2 * tile + min(n_queries, 128)) * row_bytes <= properties.shared_memory_per_block_optin

    while tile > 16 and not fits():
        tile //= 2
    if not fits():
        stages = 2
    return {
        "BLOCK_N": tile,
        "num_stages": stages,
        "num_warps": 8 if n_queries > 64 else 4,
        "SPLIT_KV": max(1, thread_blocks * properties.multi_processor_count // n_kv_heads),
        "BLOCKS_ARE_CONTIGUOUS": True,
    }
