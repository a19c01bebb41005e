"""Linear layers that read the same input, computed as one matrix product.

Published LLaMA and Qwen2 checkpoints have a matrix each for queries, keys, values, gate and up. Small products do not reach
the memory's speed: on an H200, q, k and v of Llama-3.1-8B take 29 microseconds one by one for one token and 16 as one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FusedLinears:
    """Not a module: the parameters stay where the checkpoint has them, and `allocate` lays them next to each other.

    linears: nn.Linear or model.int8.Int8Linear, all of one kind; each row of their parameters is of one output
    """

    def __init__(self, *linears: nn.Module):
        self.linears = linears
        self.sizes = [linear.out_features for linear in linears]
        self.whole: nn.Module | None = None

    def allocate(self, device: torch.device | str) -> None:
        """Give the layers, which are on the meta device, the memory of one, of which their own are views; its values are
        still to come. For inference only."""
        first = self.linears[0]
        self.whole = type(first)(first.in_features, sum(self.sizes), first.bias is not None, device="meta")
        for name, like in first.named_parameters():
            values = torch.empty(sum(self.sizes), *like.shape[1:], dtype=like.dtype, device=device)
            for module, part in zip((self.whole, *self.linears), (values, *values.split(self.sizes)), strict=True):
                setattr(module, name, nn.Parameter(part, requires_grad=False))

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """The outputs of all layers for x: (..., in_features)."""
        if self.whole is None:
            return tuple(linear(x) for linear in self.linears)
        return self.whole(x).split(self.sizes, dim=-1)
