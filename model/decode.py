"""Decoding at the memory's speed on NVIDIA cards.

A decode step reads all weights and the whole cache to compute one token per row; everything else only stands in the way.
Here one step is captured as a CUDA graph and replayed:

    no host in the loop   where the next tokens stand, and how far each row may look, are tensors on the device, which the
                          graph itself counts up
    few kernels           a layer is compiled as a whole, once for all layers, so that only the matrix products and
                          attention are kernels of some length (and model/product.py is faster than they for one row)
    a full card           one token per row gives attention too little to do, so the keys are shared out among blocks that
                          read them side by side, and the results merged by their log-sum-exp (FlashDecoding); with
                          FlexAttention (arXiv 2412.05496), whose kernel does so for any mask

All rows look at all keys together, so the shared prefix is read once per step however many rows there are, and the mask
says who sees what. Row r sees the cache up to ends[r], then its own tokens, from starts[r] to slot[r], its newest one's:

    [ prefix                                          | row 1's own | row 2's own | row 3's own |··· free ···]
             ^ ends[1]         ^ ends[2]              ^ ends[3]     ^ starts[2]  ^ slot[2]

Continuing the cache at its end is the case of one row with starts = ends = length.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from model.cache import KVCache
from model.causal_lm import MOST_COMPILATIONS, CausalLM
from model.config import ModelConfig
from model.product import ProductsOfOneToken

KEY_BLOCK = 128  # keys; attention looks at so many or at none of them
CAPTURE_BYTES = 2**28  # more than the intermediate results of a step take


class Rows(NamedTuple):
    """Where each row stands, on the device."""

    ends: Tensor  # (rows,) int32
    starts: Tensor  # (rows,) int32
    slot: Tensor  # (rows,) int32
    blocks: Tensor  # (1, 1, 1, blocks of the whole cache) int32: their numbers
    n_blocks: Tensor  # (1, 1, 1) int32: of these, how many are looked at


class GraphDecoder:
    """One step of up to `rows` rows over one cache. Rows that are left over do what row 0 does, to the same slots.

    rows: a power of two, and at most `most_rows`
    """

    def __init__(self, model: CausalLM, cache: KVCache, rows: int):
        device = cache.storage.device
        self.model, self.cache, self.n_rows = model, cache, rows
        self.tokens = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        blocks = torch.arange(-(-cache.capacity // KEY_BLOCK), dtype=torch.int32, device=device)
        torch._dynamo.maybe_mark_dynamic(blocks, 0)  # one compilation for caches of all capacities
        ends, starts, slot = torch.zeros(3, rows, dtype=torch.int32, device=device).unbind()
        self.rows = Rows(ends, starts, slot, blocks, blocks.new_zeros(1, 1, 1))
        self.options = kernel_options(model, rows, device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits: Tensor | None = None  # (rows, vocab_size), where the graph writes them

    def begin(self, ends: list[int], starts: list[int], slots: list[int], n_keys: int) -> None:
        """Continue these rows; none will write a slot from `n_keys` on."""
        self.n_rows = len(ends)
        for tensor, values in zip(self.rows, (ends, starts, slots), strict=False):
            filled = torch.tensor(values + values[:1] * (len(tensor) - self.n_rows), dtype=torch.int32)
            tensor.copy_(filled, non_blocking=True)  # from memory that is not pinned: it is read before this returns
        self.rows.n_blocks.fill_(-(-n_keys // KEY_BLOCK))

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens: (rows begun,) int64. Returns logits of the next ones, (rows begun, vocab_size), until the next call."""
        self.tokens[: self.n_rows, 0] = tokens
        self.tokens[self.n_rows :, 0] = tokens[0]
        if self.graph is None:
            self._capture()
        self.graph.replay()
        return self.logits[: self.n_rows]

    def _capture(self) -> None:
        # By hand, as torch.cuda.graph would wait for the device, which is busy with the prompts.
        slot, graph, stream = self.rows.slot.clone(), torch.cuda.CUDAGraph(), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream), torch._dynamo.config.patch(recompile_limit=MOST_COMPILATIONS):
            # Compiles, and lets libraries allocate what a capture must not. What it stores, the first replay stores anew.
            self._step()
            self.rows.slot.copy_(slot)
            if torch.cuda.mem_get_info()[0] < CAPTURE_BYTES:
                torch.cuda.empty_cache()  # waits for the device; a capture cannot take back what is only kept for later
            graph.capture_begin()
            self.logits = self._step()
            graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = graph

    def _step(self) -> Tensor:
        x, rotary = _begin(self.model, self.tokens, self.rows)
        for layer, kv in zip(self.model.model.layers, self.cache.storage[:, :, 0], strict=True):
            torch._dynamo.maybe_mark_dynamic(kv, 2)
            x = _layer(layer, x, rotary, kv, self.rows, self.options)
        return _end(self.model, x, self.rows)


@torch.compile(dynamic=False, fullgraph=True)
def _begin(model: CausalLM, tokens: Tensor, rows: Rows) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    positions = rows.ends + rows.slot - rows.starts
    return model.model.begin(tokens, positions[:, None])


@torch.compile(dynamic=False, fullgraph=True)
def _layer(
    layer: nn.Module, x: Tensor, rotary: tuple[Tensor, Tensor], kv: Tensor, rows: Rows, options: dict[str, Any]
) -> Tensor:
    """x: (rows, 1, hidden_size), as what is returned; kv: the layer's, (2, n_kv_heads, capacity, head_dim)."""

    def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        k, v = k[:, :, 0].transpose(0, 1), v[:, :, 0].transpose(0, 1)  # (n_kv_heads, rows, head_dim)
        is_key = torch.arange(2, device=x.device)[:, None, None, None] == 0
        kv[:, :, rows.slot] = torch.where(is_key, k, v)  # unlike torch.stack, this becomes one kernel with the store
        keys, values = kv.unsqueeze(1)  # (1, n_kv_heads, capacity, head_dim)
        # Row by row and head by head, the queries that read one head of keys; the kernel wants a power of two of heads.
        n_kv_heads, group = keys.shape[1], q.shape[1] // keys.shape[1]
        spare = power_of_two(group) - group
        queries = q[:, :, 0].transpose(0, 1).reshape(1, n_kv_heads, group, *x.shape[:1], -1)
        queries = F.pad(queries, (0, 0, 0, 0, 0, spare)).flatten(1, 2)  # (1, heads, rows, head_dim)
        mask = block_mask(rows, keys.shape[2], window)
        grouped = queries.shape[1] > n_kv_heads
        out = flex_attention(queries, keys, values, block_mask=mask, enable_gqa=grouped, kernel_options=options)
        out = out.reshape(n_kv_heads, group + spare, *out.shape[2:])[:, :group].flatten(0, 1)  # (n_heads, rows, head_dim)
        return out.transpose(0, 1)[:, :, None]

    with ProductsOfOneToken() if len(x) == 1 else nullcontext():
        return layer(x, rotary, attend)


@torch.compile(dynamic=False, fullgraph=True)
def _end(model: CausalLM, x: Tensor, rows: Rows) -> Tensor:
    rows.slot.add_(1)
    return model.lm_head(model.model.norm(x))[:, 0]


def block_mask(rows: Rows, capacity: int, window: int | None) -> BlockMask:
    """Who sees what; see the picture above.

    window: how many tokens back a row sees, its newest one included; None for all
    """

    def sees(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        prefix, own = key < rows.ends[row], (key >= rows.starts[row]) & (key <= rows.slot[row])
        if window is not None:
            back = rows.slot[row] - key  # among its own
            own = own & (back < window)
            prefix = prefix & (back + rows.ends[row] - rows.starts[row] < window)
        return prefix | own

    return BlockMask.from_kv_blocks(
        rows.n_blocks,
        rows.blocks[None, None, None],
        BLOCK_SIZE=KEY_BLOCK,
        mask_mod=sees,
        seq_lengths=(len(rows.slot), capacity),
        compute_q_blocks=False,
    )


def power_of_two(n: int) -> int:
    """The least that is not less than n."""
    return 1 << (n - 1).bit_length()


def group_size(config: ModelConfig) -> int:
    """How many heads of queries read one head of keys, filled up as the kernel wants it."""
    return power_of_two(config.num_attention_heads // config.num_key_value_heads)


def most_rows(config: ModelConfig) -> int:
    """Of one decoder: the kernel takes 128 queries at a time for one head of keys, and fewer than 128 rows."""
    return max(1, min(64, 128 // group_size(config)))


def kernel_options(model: CausalLM, rows: int, device: torch.device) -> dict[str, Any]:
    """How the kernel is cut: large blocks, one for each multiprocessor, or for several rows small ones, two for each.

    Each has three tiles of keys and values on their way; FlexAttention's own choice waits for each tile. Microseconds on an
    H200, bfloat16, 8 heads of keys, 65,536 of them: one row 67 (its own choice 116), 16 rows 80 (212).
    """
    if device.type != "cuda":
        return {}
    config, properties = model.config, torch.cuda.get_device_properties(device)
    n_kv_heads, n_queries = config.num_key_value_heads, rows * group_size(config)  # n_queries: for one head of keys
    row_bytes = 2 * power_of_two(config.head_dim)
    tile, blocks = (128, 1) if rows == 1 else (64, 2)
    while tile > 16 and (3 * 2 * tile + min(n_queries, 128)) * row_bytes > properties.shared_memory_per_block_optin:
        tile //= 2
    return {
        "BLOCK_N": tile,
        "num_stages": 3,
        "num_warps": 8 if n_queries > 64 else 4,
        "SPLIT_KV": max(1, blocks * properties.multi_processor_count // n_kv_heads),
        "BLOCKS_ARE_CONTIGUOUS": True,
    }
