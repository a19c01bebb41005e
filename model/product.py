"""A matrix times one token, at the memory's speed.

Matrix libraries are made for many columns. With one, a product is a sum over each row of the matrix, and where that is
faster the compiler makes a kernel of it as such. Microseconds for Llama-3.1-8B, bfloat16, H200; in the last line what the
bytes of the matrix take at the speed of a copy:

    matrix      q, k, v        o          down
    cuBLAS      16.3           12.4       31.0      and 1 or 2 more where it leaves sums for a second kernel to add up
    here        14.0           10.1       28.3
    copy        11.8            7.9       27.6
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

FEW_COLUMNS = 4096


class ProductsOfOneToken(TorchFunctionMode):
    """Where this is entered, F.linear computes by `product` what that is faster for. For inputs of one token."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear and sums_are_faster(*args[1].shape):
            function = product
        return function(*args, **(kwargs or {}))


def sums_are_faster(n_rows: int, n_columns: int) -> bool:
    """Measured on an H200 with the matrices of three models.

    Not where there are many rows (cuBLAS has enough to do on each multiprocessor), and not where the compiler's blocks of
    2,048 columns do not fill a long row.
    """
    return n_rows <= 2 * n_columns and (n_columns <= FEW_COLUMNS or n_columns % 2048 == 0)


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
    n_columns = weight.shape[1]
    # A short row in quarters, each of which a block holds at once; a long one in a loop, which the compiler makes.
    n_parts = 4 if n_columns <= FEW_COLUMNS and n_columns % 4 == 0 else 1
    rows, columns = weight.view(-1, n_parts, n_columns // n_parts), input.view(n_parts, -1)
    sums = sum((rows[:, part] * columns[part]).sum(dim=-1, dtype=torch.float32) for part in range(n_parts))
    sums = sums if bias is None else sums + bias
    return sums.to(input.dtype).view(*input.shape[:-1], -1)


_row_sums_compiled = torch.compile(_row_sums, dynamic=False)
