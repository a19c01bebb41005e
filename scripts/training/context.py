"""Who sees whom in a training row: the KV cache of inference, written as an attention mask.

A row of T tokens holds several *segments* one after another. A segment is a document (with its header) or a *branch*: a
prompt and its reply, which at inference would have been appended to the cache after some of the document was read, and
rolled back. So a token sees two ranges of its row:

    its own segment up to itself               [begin, itself]
    what was in the cache before the branch    [start, cut)        empty for a document

    row      | header + document            | margin 1 | margin 2 | answer |  next tree ...
    begin    0                              a          b          c
    cut of a: ........|                 the end of the branch's chunk
    cut of c: ..............................|   the end of the document

That is the whole mask, and three integers a token say it. The positions of a branch go on from its cut, so a branch
computes here exactly what it computes after a cache that was filled up to the cut.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from model.config import PLAIN, AttentionOptions

BLOCK = 128  # the tile of FlexAttention: it skips tiles in which nobody sees anybody


class TreeContext:
    """What the models ask of a context (model/transformer.py), for rows of trees instead of a cache.

    positions, begin, start, cut: (batch, T) integers, see above.
    """

    def __init__(self, positions: Tensor, begin: Tensor, start: Tensor, cut: Tensor):
        self.token_positions = positions
        if positions.device.type == "cuda":
            self.mask = block_mask(begin, start, cut)
        else:
            self.mask = dense_mask(begin, start, cut).unsqueeze(1)  # (batch, 1, T, T)

    def positions(self, seq_len: int) -> Tensor:
        return self.token_positions

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions) -> Tensor:
        """q: (batch, n_heads, T, head_dim); k, v: (batch, n_kv_heads, T, head_dim). Returns q's shape."""
        if options.window is not None:
            raise ValueError("A row of trees has no sliding window: positions and places in the row are not the same.")
        if options != PLAIN:
            raise ValueError(f"A row of trees has plain attention; {options} was not trained for.")
        q, k = q.to(v.dtype), k.to(v.dtype)  # autocast leaves the rotated ones in float32
        if isinstance(self.mask, BlockMask):
            return flex_attention(q, k, v, block_mask=self.mask, enable_gqa=q.shape[1] != k.shape[1])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, enable_gqa=q.shape[1] != k.shape[1])

    def advance(self, seq_len: int) -> None:
        pass


def dense_mask(begin: Tensor, start: Tensor, cut: Tensor) -> Tensor:
    """The mask by its definition, (batch, T, T) bool: [b, q, k] says whether token q sees token k."""
    q = torch.arange(begin.shape[1], device=begin.device)[:, None]
    k = torch.arange(begin.shape[1], device=begin.device)[None, :]
    begin, start, cut = begin[:, :, None], start[:, :, None], cut[:, :, None]
    return ((begin <= k) & (k <= q)) | ((start <= k) & (k < cut))


def block_mask(begin: Tensor, start: Tensor, cut: Tensor) -> BlockMask:
    """The mask for FlexAttention: which tiles are empty, which are full, and a rule for the others.

    FlexAttention's own `create_block_mask` evaluates the rule for all T x T pairs. Here every token sees two ranges, so
    T x (T / BLOCK) comparisons of range ends say as much. T should be a multiple of BLOCK.
    """
    some, full = tiles(begin, start, cut)
    partial = some & ~full

    def rule(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        own = (begin[batch, q] <= k) & (k <= q)
        return own | ((start[batch, q] <= k) & (k < cut[batch, q]))

    return BlockMask.from_kv_blocks(*_listed(partial), *_listed(full), BLOCK_SIZE=BLOCK, mask_mod=rule)


def tiles(begin: Tensor, start: Tensor, cut: Tensor) -> tuple[Tensor, Tensor]:
    """For each tile of queries and of keys: does some query see some key, and does every query see every key.

    Returns two (batch, T / BLOCK, T / BLOCK) bool. The second may say no of a tile that is full of two adjoining
    ranges; that costs a little time and changes nothing.
    """
    batch, row = begin.shape
    if row % BLOCK:
        raise ValueError(f"A row of {row} tokens is not a multiple of {BLOCK}.")
    first = torch.arange(0, row, BLOCK, device=begin.device)  # the first key of each tile; (T / BLOCK,)
    own_end = torch.arange(1, row + 1, device=begin.device).expand(batch, row)
    some = torch.zeros((), dtype=torch.bool, device=begin.device)
    full = torch.zeros((), dtype=torch.bool, device=begin.device)
    for low, high in ((begin, own_end), (start, cut)):
        low, high = low.unsqueeze(-1), high.unsqueeze(-1)  # each (batch, T, 1)
        some = some | ((low < first + BLOCK) & (high > first) & (low < high))  # (batch, T, T / BLOCK)
        full = full | ((low <= first) & (high >= first + BLOCK))
    by_tile = (batch, row // BLOCK, BLOCK, row // BLOCK)
    return some.view(by_tile).any(dim=2), full.view(by_tile).all(dim=2)


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """FlexAttention's way to name tiles: how many of each row, and their numbers, the chosen ones first."""
    chosen = chosen.unsqueeze(1).int()  # (batch, 1 for all heads, tiles of queries, tiles of keys)
    return chosen.sum(dim=-1, dtype=torch.int32), chosen.argsort(dim=-1, descending=True, stable=True).int()
