"""The fast attention kernels of PyTorch on NVIDIA cards: which one for what, and what they want.

Measured on one H200, bfloat16, 32 heads over 8 of keys, head size 128, against 65,536 keys (microseconds):

    queries                        4,096      64       1
    cuDNN                          6,471     763      67
    FlashAttention-2              11,939      82      82

FlashAttention splits the keys among thread blocks, so that a few queries fill the card; cuDNN is the faster of the two for
many. But cuDNN makes its kernels when they are first used. That takes 1.5 to 2.4 seconds of a process, more than it saves
in one reading of 65,536 tokens. So cuDNN computes only from prefixes of 65,536 tokens on, and FlashAttention before. After
`CausalLM.compile_layers`, by which a caller says that much will be read, cuDNN computes wherever it is faster.

For each new pair of lengths cuDNN also builds a plan, which takes 40 ms, and every chunk of a document is a new pair. (So
is every new cache, whose strides differ.) So it is only ever given a few lengths: queries are padded to a multiple of
1,024, and the prefix is cut into pieces whose lengths are powers of two. If a chunk consists of whole blocks, cuDNN
computes its causal part as well: on an H100, 65,536 tokens are read 2% faster for it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels.merge import Part, merge

QUERY_BLOCK = 1024  # fewer queries than this are not worth padding
PREFIX_BLOCK = 4096  # the smallest piece of a prefix
ONE_READING = 65536  # from this length of a prefix on, cuDNN pays within one reading
cudnn_from = ONE_READING  # keys of a prefix; `expect_much` lowers it
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


def expect_much() -> None:
    """From now on, in the whole process, take cuDNN wherever it is faster once its kernels are made."""
    global cudnn_from
    cudnn_from = PREFIX_BLOCK


def chunk_attention(q: Tensor, keys: Tensor, values: Tensor, scale: float | None = None) -> Tensor:
    """Attention of a chunk after a prefix; arguments as in model.attention.causal_attention, scale as AttentionOptions'.

    cuDNN computes pieces of the prefix, and the chunk itself if it consists of whole blocks. FlashAttention computes what
    is left, or all of it where cuDNN does not pay. The parts are merged by their log-sum-exp.
    """
    n_queries = q.shape[2]
    n_prefix = keys.shape[2] - n_queries
    if n_queries < QUERY_BLOCK or n_prefix < cudnn_from or not _cudnn_serves(q):
        return flash_attention(q, keys, values, causal=True, scale=scale)[0]

    def seen(start: int, end: int | None) -> tuple[Tensor, Tensor]:
        return keys[:, :, start:end], values[:, :, start:end]

    cuts, spare = [0, *piece_ends(n_prefix)], -n_queries % QUERY_BLOCK
    if spare:
        part = flash_attention(q, *seen(cuts[-1], None), causal=True, scale=scale)
    else:
        part = _cudnn_attention(q, *seen(n_prefix, None), causal=True, scale=scale)
        if cuts[-1] < n_prefix:
            part = merge(flash_attention(q, *seen(cuts[-1], n_prefix), causal=False, scale=scale), part)
    padded = F.pad(q, (0, 0, 0, spare)) if spare else q
    for start, end in zip(cuts, cuts[1:], strict=False):
        out, lse = _cudnn_attention(padded, *seen(start, end), causal=False, scale=scale)
        part = merge((out[:, :, :n_queries], lse[:, :, :n_queries]), part)
    return part[0]


def _cudnn_attention(q: Tensor, keys: Tensor, values: Tensor, causal: bool, scale: float | None) -> Part:
    cudnn = torch.ops.aten._scaled_dot_product_cudnn_attention
    out, lse, *_ = cudnn(q, keys, values, None, True, 0.0, causal, scale=scale)
    return out, lse.squeeze(-1)


def piece_ends(length: int) -> list[int]:
    """Where to cut as much of a length as PREFIX_BLOCK divides: into pieces of PREFIX_BLOCK times falling powers of two."""
    ends, blocks = [0], length // PREFIX_BLOCK
    for bit in reversed(range(blocks.bit_length())):
        if blocks >> bit & 1:
            ends.append(ends[-1] + (PREFIX_BLOCK << bit))
    return ends[1:]


def flash_attention(q: Tensor, keys: Tensor, values: Tensor, causal: bool, scale: float | None = None) -> Part:
    """FlashAttention-2 (arXiv 2307.08691): attention and LSE; `causal` queries stand where the last keys do.

    It reads grouped keys as they are, with any strides.
    """
    q, keys, values = (x.transpose(1, 2) for x in (q, keys, values))  # (batch, seq_len, heads, head_dim)
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q, keys, values, None, None, q.shape[1], keys.shape[1], 0.0, causal, False, scale=scale
    )
    return out.transpose(1, 2), lse


class Groups(NamedTuple):
    """Groups of queries, one after the other. The queries of a group share a range of keys.

    Group g's queries are [query_starts[g], query_starts[g + 1]), its keys [key_starts[g], key_starts[g] + key_counts[g]).
    Ranges of keys may overlap.
    """

    query_starts: Tensor  # (groups + 1,) int32
    key_starts: Tensor  # (groups + 1,) int32, the last of which says nothing
    key_counts: Tensor  # (groups,) int32
    max_queries: int  # of a group

    @classmethod
    def of_size(cls, size: int, key_starts: Tensor, key_counts: Tensor) -> Groups:
        """Each with `size` queries. key_starts, key_counts: (groups,)"""
        query_starts = torch.arange(0, (len(key_starts) + 1) * size, size, dtype=torch.int32, device=key_starts.device)
        return cls(query_starts, F.pad(key_starts.int(), (0, 1)), key_counts.int(), size)


def varlen_attention(
    q: Tensor, keys: Tensor, values: Tensor, groups: Groups, causal: bool = False, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """FlashAttention-2 over many groups at once.

    q: (n_queries, n_heads, head_dim); keys, values: (n_keys, n_kv_heads, head_dim)
    causal: the queries stand where the last keys of their group do; those before the first key get 0, and an LSE of +inf
    Returns the output, as q, and LSE (n_heads, n_queries) float32.
    """
    out, lse, *_ = torch.ops.aten._flash_attention_forward(
        q,
        keys,
        values,
        groups.query_starts,
        groups.key_starts,
        groups.max_queries,
        keys.shape[0],
        0.0,
        causal,
        False,
        scale=scale,
        seqused_k=groups.key_counts,
    )
    return out, lse
