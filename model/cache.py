"""The KV cache: one tensor for the keys and values of all layers, and one pointer.

    storage  (n_layers, 2, n_kv_heads, capacity, head_dim)                 2: keys, values

    along `capacity` (header: what stands before the document; margin: the reply to the extract prompt):

        [ header | chunk 1 | chunk 2 |····················· free ·····················]
                                     ^ length
        [ header | chunk 1 | chunk 2 | extract prompt | margin |········ free ········]
                                                               ^ length
        [ header | chunk 1 | chunk 2 |····················· free ·····················]
                                     ^ rollback(length): the pointer moves, no byte does

Everything below `length` is what the model has read; everything above it is free, whatever bytes are there. Writing in the
Margins asks a question after each chunk and then forgets having asked: that is `rollback`, an assignment to an integer.

Why that is exact. Attention is causal: the keys and values of position i are computed from the tokens up to i, and from no
later one. So what stands below `length` is the same whether or not anything was read after it, and to forget a suffix
nothing needs to be restored. The next token takes the position `length`, as if the suffix had never been.

Who may do what. Only `advance` and `rollback` move the pointer. Nothing is ever written below `length`. Above it `attend`
writes, before `advance` moves the pointer; and, for speed alone, branches (model/branch.py), whose rows stay above it, and
captured decode steps (model/graph.py), which may be ahead of it. Each reads there only what it wrote itself.

A layer with a sliding window keeps all its keys too. A window that had dropped old keys could not be rolled back: after a
margin, the chunk before it would be gone.

What it costs. Llama-3.1-8B (32 layers, 8 heads of keys, 128 channels) for 65,536 tokens in bfloat16:

    (32, 2, 8, 65536, 128) = 4,294,967,296 numbers of 2 bytes = 8 GiB, or 128 KiB for each token
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.attention import causal_attention
from model.config import PLAIN, AttentionOptions, ModelConfig


class KVCache:
    """Keys and values of up to `capacity` positions, allocated once.

    The models see it through three methods, in this order in each forward pass: `positions` (where the new tokens stand),
    `attend` (once per layer: store the new keys and values, then attend), `advance` (once: the new tokens are read).
    """

    def __init__(
        self,
        config: ModelConfig,
        capacity: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        shape = (config.num_hidden_layers, 2, config.num_key_value_heads, capacity, config.head_dim)
        # Zeros, since what is free must be finite, as stale keys are: compiled decode steps (model/kernels/flex_rows.py),
        # and captured ones with a soft cap, read keys before their mask hides them, and NaN times zero is NaN.
        self.storage = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    @property
    def capacity(self) -> int:
        """How many positions there is room for."""
        return self.storage.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return self.storage.nbytes

    @staticmethod
    def bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
        """What one position costs: keys and values of every layer (131,072 bytes for Llama-3.1-8B in bfloat16)."""
        return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * dtype.itemsize

    def positions(self, seq_len: int) -> Tensor:
        """The positions of the next `seq_len` tokens, (1, seq_len) int64.

        Raises ValueError when they do not fit.
        """
        if self.length + seq_len > self.capacity:
            raise ValueError(
                f"The cache holds {self.length} of {self.capacity} positions and cannot take {seq_len} more; "
                "allocate it with a larger capacity."
            )
        return torch.arange(self.length, self.length + seq_len, device=self.storage.device).unsqueeze(0)

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions = PLAIN) -> Tensor:
        """Store the new keys and values of one layer from position `length` on and attend to everything up to them.

        q: (1, n_heads, seq_len, head_dim); k, v: (1, n_kv_heads, seq_len, head_dim), both already rotated.
        Returns (1, n_heads, seq_len, head_dim).
        """
        end = self.length + k.shape[2]
        keys, values = self.layer(layer_idx, end)  # views: (1, n_kv_heads, end, head_dim)
        keys[:, :, self.length :] = k
        values[:, :, self.length :] = v
        return causal_attention(q, keys, values, options)

    def advance(self, seq_len: int) -> None:
        """Move the pointer over `seq_len` tokens whose keys and values every layer has stored."""
        self.length += seq_len

    def rollback(self, length: int) -> None:
        """Forget every position from `length` on. Nothing is copied, cleared or allocated.

        Raises ValueError for a length below zero or ahead of the pointer.
        """
        if length < 0:
            raise ValueError(f"The cache cannot be rolled back to {length} positions; zero is the least.")
        if length > self.length:
            raise ValueError(
                f"The cache cannot be rolled forward from {self.length} to {length} positions; prefill them instead."
            )
        self.length = length

    # Views for those who read or write above `length`; nothing is copied.

    def layer(self, layer_idx: int, end: int | None = None) -> Tensor:
        """Keys and values of one layer up to `end`, as a batch of one: (2, 1, n_kv_heads, end, head_dim)."""
        return self.storage[layer_idx, :, None, :, :end]

    def rows_above(self, rows: int, slots: int) -> Tensor:
        """The first free positions as rows of so many slots each: (n_layers, 2, rows, n_kv_heads, slots, head_dim).

        Raises ValueError when they do not fit.
        """
        free = self.storage[:, :, :, self.length : self.length + rows * slots]
        if free.shape[3] < rows * slots:
            raise ValueError(
                f"{rows} branches of {slots} positions do not fit into the {self.capacity - self.length} free positions "
                "of the cache; allocate it with a larger capacity or take fewer rows at a time."
            )
        return free.unflatten(3, (rows, slots)).transpose(2, 3)
