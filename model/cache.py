"""The KV cache: one tensor for the keys and values of all layers, and one pointer.

    storage  (n_layers, 2, 1, n_kv_heads, capacity, head_dim)              2: keys, values; 1: the batch

    along `capacity`:

        [ header | chunk 1 | chunk 2 |····················· free ·····················]
                                     ^ length
        [ header | chunk 1 | chunk 2 | extract prompt | margin |········ free ········]
                                                               ^ length
        [ header | chunk 1 | chunk 2 |····················· free ·····················]
                                     ^ rollback(length): the pointer moves, no byte does

Everything below `length` is what the model has read; everything above it is free, whatever bytes are there. Writing in the
Margins asks a question after each chunk and then forgets having asked: that is `rollback`, an assignment to an integer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.attention import causal_attention
from model.config import ModelConfig


class KVCache:
    """Keys and values of up to `capacity` positions, allocated once.

    The models see it through three methods, in this order in each forward pass: `positions` (where the new tokens stand),
    `attend` (once per layer: store the new keys and values, then attend), `advance` (once: the new tokens are read).
    Branches (model/branch.py) and CUDA graphs (model/graph.py) write above `length` without moving it.
    """

    def __init__(
        self,
        config: ModelConfig,
        capacity: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        shape = (config.num_hidden_layers, 2, 1, config.num_key_value_heads, capacity, config.head_dim)
        self.storage = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    @property
    def capacity(self) -> int:
        """How many positions there is room for."""
        return self.storage.shape[4]

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

    def attend(self, layer_idx: int, q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
        """Store the new keys and values of one layer from position `length` on and attend to everything up to them.

        q: (1, n_heads, seq_len, head_dim); k, v: (1, n_kv_heads, seq_len, head_dim), both already rotated.
        Returns (1, n_heads, seq_len, head_dim).
        """
        end = self.length + k.shape[2]
        keys, values = self.storage[layer_idx, :, :, :, :end].unbind(0)  # views: (1, n_kv_heads, end, head_dim)
        keys[:, :, self.length :] = k
        values[:, :, self.length :] = v
        return causal_attention(q, keys, values, window)

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
