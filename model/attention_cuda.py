"""The fast attention kernels of PyTorch on NVIDIA cards: which one for what, and what they want.

Measured on one H200, bfloat16, 32 heads over 8 of keys, head size 128, against 65,536 keys (microseconds):

    queries                        4,096      64       1
    cuDNN                          6,471     763      67
    FlashAttention-2              11,939      82      82

FlashAttention splits the keys among thread blocks, so that a few queries fill the card; cuDNN is the faster of the two for
many. So long chunks go to cuDNN, and short prompts to FlashAttention (single queries have model/decode.py). cuDNN has one
drawback: it builds a plan of 40 ms for each new pair of lengths (and for each new cache, whose strides are others), and
every chunk of a document is a new pair. So it is only ever given a few: queries are padded to a multiple of 1,024 and the
prefix is cut into pieces whose lengths are powers of two.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from model.merge import Part, merge

QUERY_BLOCK = 1024  # fewer queries than this are not worth padding
KEY_BLOCK = 4096  # the smallest piece of a prefix
AMPERE, HOPPER = 8, 9  # major numbers of compute capabilities


def flash_serves(x: Tensor) -> bool:
    """Whether FlashAttention computes with this tensor: 16-bit numbers on an NVIDIA card, Ampere or later."""
    return x.device.type == "cuda" and x.dtype in (torch.bfloat16, torch.float16) and _generation(x.device) >= AMPERE


@lru_cache
def _generation(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0]


def _cudnn_serves(q: Tensor) -> bool:
    """cuDNN's kernel is the faster one from Hopper on, and made for heads of up to 128."""
    return _generation(q.device) >= HOPPER and q.shape[-1] <= 128 and torch.backends.cudnn.is_available()


def causal_attention_cuda(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of a chunk behind a prefix; arguments as in model.attention.causal_attention.

    The prefix is read in pieces by cuDNN; what is left of it and the chunk itself by FlashAttention's causal kernel; the
    parts are merged by their log-sum-exp.
    """
    n_queries = q.shape[2]
    n_prefix = keys.shape[2] - n_queries
    if n_queries < QUERY_BLOCK or n_prefix < KEY_BLOCK or not _cudnn_serves(q):
        return flash_attention(q, keys, values, causal=True)[0]
    cuts = piece_ends(n_prefix)
    part = flash_attention(q, keys[:, :, cuts[-1] :], values[:, :, cuts[-1] :], causal=True)
    padded = F.pad(q, (0, 0, 0, -n_queries % QUERY_BLOCK))
    for start, end in zip([0, *cuts[:-1]], cuts, strict=True):
        out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            padded, keys[:, :, start:end], values[:, :, start:end], None, True, 0.0, False
        )
        part = merge((out[:, :, :n_queries], lse[:, :, :n_queries, 0]), part)
    return part[0]


def piece_ends(length: int) -> list[int]:
    """Cut as much of a length as KEY_BLOCK divides into pieces of falling powers of two times KEY_BLOCK."""
    ends, blocks = [0], length // KEY_BLOCK
    for bit in reversed(range(blocks.bit_length())):
        if blocks >> bit & 1:
            ends.append(ends[-1] + (KEY_BLOCK << bit))
    return ends[1:]


def flash_attention(q: Tensor, keys: Tensor, values: Tensor, causal: bool) -> Part:
    """FlashAttention-2 (arXiv 2307.08691): attention and LSE; `causal` queries stand where the last keys do.

    It reads grouped keys as they are, with any strides.
    """
    q, keys, values = (x.transpose(1, 2) for x in (q, keys, values))  # (batch, seq_len, heads, head_dim)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, keys, values, None, None, q.shape[1], keys.shape[1], 0.0, causal, False
    )
    return out.transpose(1, 2), lse


def packed_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    key_counts: Tensor,
    most_queries: int,
    causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """FlashAttention-2 over many groups, each some queries that look at some range of one tensor of keys.

    q: (n_queries, n_heads, head_dim), the groups' queries one after the other; keys, values: (n_keys, n_heads, head_dim)
    query_starts, key_starts: (groups + 1,) int32; key_counts: (groups,) int32. Group g's queries are
        [query_starts[g], query_starts[g + 1]) and its keys [key_starts[g], key_starts[g] + key_counts[g]); ranges of keys
        may overlap
    most_queries: of a group
    causal: the queries stand where the last keys of their group do; those before the first key get 0, and an LSE of +inf
    Returns the output, as q, and LSE (n_heads, n_queries) float32.
    """
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q,
        keys,
        values,
        query_starts,
        key_starts,
        most_queries,
        keys.shape[0],
        0.0,
        causal,
        False,
        seqused_k=key_counts,
    )
    return out, lse
