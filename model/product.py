"""A matrix times a vector (GEMV), at the memory's speed: the linear layers of a decode step with one row.

Matrix libraries are made for products of two matrices. With a vector each output is the sum over one row of the weight, and
where that is faster the compiler makes a kernel of it as such. Microseconds for Llama-3.1-8B, bfloat16, H200; in the last
line what the bytes of the matrix take at the speed of a copy:

    matrix      q, k, v        o          down
    cuBLAS      16.3           12.4       31.0
    here        14.0           10.1       28.3
    copy        11.8            7.9       27.6

For o and down cuBLAS also needs a second kernel of 1 or 2 more, since it shares out each row among thread blocks (split-K).
Gate and up have so many rows that cuBLAS, at 56, leaves nothing to gain.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

SHORT_ROW = 4096  # up to here a row is summed up in quarters


class ProductsOfOneToken(TorchFunctionMode):
    """Where this is entered, F.linear computes by `product` what that is faster for. For inputs of one token."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear and len(args) > 1 and sums_are_faster(*args[1].shape):
            function = product
        return function(*args, **(kwargs or {}))


def sums_are_faster(out_features: int, in_features: int) -> bool:
    """Measured on an H200 with the matrices of three models: with few rows, if they are short or fill the compiler's loop.

    The loop takes 2,048 numbers at a time.
    """
    return out_features <= 2 * in_features and (in_features <= SHORT_ROW or in_features % 2048 == 0)


# An operator of its own, so that nothing is fused into it: what goes into a row's sum would be computed for each row anew.
@torch.library.custom_op("writing_in_the_margins::product", mutates_args=())
def product(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear for an input of one token, (1, …, 1, in_features), summed up in float32."""
    return _row_sums(input, weight, bias)


@product.register_kernel("cuda")
def _(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return _row_sums_compiled(input, weight, bias)


@product.register_fake
def _(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return input.new_empty(*input.shape[:-1], weight.shape[0])


def _row_sums(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    in_features = weight.shape[1]
    # A quarter of a short row is held at once by a thread block; a long one is read in a loop, which the compiler makes.
    n_parts = 4 if in_features <= SHORT_ROW and in_features % 4 == 0 else 1
    rows, x = weight.view(-1, n_parts, in_features // n_parts), input.view(n_parts, -1)
    sums = sum((rows[:, part].float() * x[part].float()).sum(dim=-1) for part in range(n_parts))
    sums = sums if bias is None else sums + bias
    return sums.to(input.dtype).view(*input.shape[:-1], -1)


_row_sums_compiled = torch.compile(_row_sums, dynamic=False, fullgraph=True)
