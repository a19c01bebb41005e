"""The rows of model/kernels/flash_rows.py after `CausalLM.compile_layers`: a layer of a decode step is compiled as a whole.

Few kernels are left: the matrix products (with one row: model/kernels/gemv.py), a few small ones, and attention by
FlexAttention (arXiv 2412.05496), which shares the keys out among thread blocks for any mask. The queries of all rows are
compared with all keys, so a shared prefix is read once for up to `max_rows` rows, and the mask says which row sees which
key. Keys that the rows will not reach are not read, whatever the capacity. All others are read before the mask hides some
of them, so they must be finite.

This module imports the compiler, which takes seconds: import it only where layers are compiled.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from model.cache import KVCache
from model.config import AttentionOptions, ModelConfig
from model.kernels.compiled_layers import MAX_COMPILATIONS
from model.kernels.flash_rows import DeviceRows, Places, sees
from model.kernels.gemv import GemvMode
from model.transformer import Context, Rotary

KEY_BLOCK = 128  # keys; how many such blocks from the cache's beginning are read is known to the device only


class RowState(NamedTuple):
    """What a compiled layer is told of the rows, on the device."""

    ends: Tensor  # (rows,) int32
    starts: Tensor  # (rows,) int32
    slots: Tensor  # (rows,) int32
    blocks: Tensor  # (blocks of keys in the whole cache,) int32: their numbers
    n_blocks: Tensor  # (1, 1, 1) int32: of these, how many are looked at


class FlexRows(DeviceRows):
    """Rows whose layers are compiled.

    rows: a power of two, and at most `max_rows`
    """

    def __init__(self, cache: KVCache, rows: int, config: ModelConfig):
        super().__init__(cache, rows)
        blocks = torch.arange(-(-cache.capacity // KEY_BLOCK), dtype=torch.int32, device=self.device)
        torch._dynamo.maybe_mark_dynamic(blocks, 0)  # one compilation for caches of all capacities
        self.state = RowState(self.ends, self.starts, self.slots, blocks, blocks.new_zeros(1, 1, 1))
        self.options = kernel_options(config, rows, self.device)

    def begin(self, places: Places, n_tokens: int) -> None:
        super().begin(places, n_tokens)
        self.state.n_blocks.fill_(-(-(max(places.slots) + n_tokens) // KEY_BLOCK))

    def run_layer(self, layer: nn.Module, layer_idx: int, x: Tensor, rotary: Rotary, context: Context) -> Tensor:
        """A RunLayer (model/transformer.py)."""
        kv = self.cache.storage[layer_idx]
        torch._dynamo.maybe_mark_dynamic(kv, 2)
        with torch._dynamo.config.patch(recompile_limit=MAX_COMPILATIONS):
            return _layer(layer, x, rotary, kv, self.state, self.options)


@torch.compile(dynamic=False, fullgraph=True)
def _layer(layer: nn.Module, x: Tensor, rotary: Rotary, kv: Tensor, state: RowState, options: dict[str, Any]) -> Tensor:
    """x: (rows, 1, hidden_size), as what is returned; kv: the layer's, (2, n_kv_heads, capacity, head_dim)."""

    def attend(q: Tensor, k: Tensor, v: Tensor, of_layer: AttentionOptions) -> Tensor:
        k, v = k[:, :, 0].transpose(0, 1), v[:, :, 0].transpose(0, 1)  # (n_kv_heads, rows, head_dim)
        is_key = torch.arange(2, device=x.device)[:, None, None, None] == 0
        kv[:, :, state.slots] = torch.where(is_key, k, v)  # unlike torch.stack, this becomes one kernel with the store
        keys, values = kv.unsqueeze(1)  # (1, n_kv_heads, capacity, head_dim)
        # The query heads of one KV head next to each other; the kernel wants a power of two of them.
        n_kv_heads, group = keys.shape[1], q.shape[1] // keys.shape[1]
        spare = next_power_of_two(group) - group
        queries = q[:, :, 0].transpose(0, 1).reshape(1, n_kv_heads, group, *x.shape[:1], -1)
        queries = F.pad(queries, (0, 0, 0, 0, 0, spare)).flatten(1, 2)  # (1, heads, rows, head_dim)
        more = {"scale": of_layer.scale, "block_mask": block_mask(state, keys.shape[2], of_layer.window)}
        if of_layer.soft_cap is not None:
            more["score_mod"] = lambda score, *at: of_layer.capped(score)
        out = flex_attention(queries, keys, values, enable_gqa=True, kernel_options=options, **more)
        out = out.reshape(n_kv_heads, group + spare, *out.shape[2:])[:, :group].flatten(0, 1)  # (n_heads, rows, head_dim)
        return out.transpose(0, 1)[:, :, None]

    with GemvMode() if len(x) == 1 else nullcontext():
        return layer(x, rotary, attend)


def block_mask(state: RowState, capacity: int, window: int | None) -> BlockMask:
    """Which row sees which key, see `sees`."""

    def row_sees(batch: Tensor, head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return sees(state.ends[row], state.starts[row], state.slots[row], key, window)

    return BlockMask.from_kv_blocks(
        state.n_blocks,
        state.blocks[None, None, None],
        BLOCK_SIZE=KEY_BLOCK,
        mask_mod=row_sees,
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
