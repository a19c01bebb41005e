"""A matrix times a vector (GEMV), at the memory's speed: the linear layers of a decode step with one row.

Matrix libraries are made for products of two matrices. In a product with a vector each output is a sum over one row of the
weight; where that is faster, the compiler makes a kernel of the sum. The table gives microseconds for Llama-3.1-8B in
bfloat16 on an H200. Its last line is the time that a copy of as many bytes takes.

    matrix      q, k, v        o          down
    cuBLAS      16.3           12.4       31.0
    here        14.0           10.1       28.3
    copy        11.8            7.9       27.6

For o and down cuBLAS also needs a second kernel of 1 or 2 more, since it shares out each row among thread blocks (split-K).
Gate and up are one tall matrix. On an H100 cuBLAS takes 83.0 for it, and silu(gate) * up takes 1.4 and a gap after it; as
sums, all of that is one kernel of 75.4 (copy: 77.8, as it writes too). Rows of 3,072 to 8,192 numbers gained likewise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from model.kernels.compiled_layers import MAX_COMPILATIONS

SHORT_ROW = 4096  # up to here a thread block holds a row at once; a longer one it reads in a loop
PART = 1024  # of a short row: what a thread block reads at a time


class GemvMode(TorchFunctionMode):
    """Within this context F.linear is `gemv`, where that is faster. Inputs must be of one token.

    If the output of another product is only split into equal halves (gate and up), the two halves are computed separately,
    so that the compiler can fuse both with what becomes of them, silu(gate) * up.
    """

    def __init__(self):
        super().__init__()
        self.wholes: list[tuple[Tensor, tuple]] = []  # the products of a matrix library, and their factors

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear:
            return self._linear(*args, **(kwargs or {}))
        result = function(*args, **(kwargs or {}))
        if function in (Tensor.split, Tensor.chunk) and len(result) == 2 and result[0].shape == result[1].shape:
            for whole, factors in self.wholes:
                if whole is args[0]:
                    return _halves(*factors)  # nobody reads the whole, so the compiler drops it
        return result

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if gemv_is_faster(*weight.shape):
            return gemv(input, weight, bias)
        whole = F.linear(input, weight, bias)
        self.wholes.append((whole, (input, weight, bias)))
        return whole


def gemv_is_faster(out_features: int, in_features: int) -> bool:
    """Whether `gemv` is faster than the matrix library, by what was measured on an H200 with the matrices of three models.

    It is where there are few rows, and each is short or a multiple of the 2,048 numbers that the compiler's loop takes.
    """
    return out_features <= 2 * in_features and (in_features <= SHORT_ROW or in_features % 2048 == 0)


def _halves(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    # Strides are of memory, so the input is computed before: what is fused into a row's sum is computed anew for each row.
    input = input.as_strided(input.shape, input.stride())
    biases = (None, None) if bias is None else bias.chunk(2)
    first, second = (_row_sums(input, *half) for half in zip(weight.chunk(2), biases, strict=True))
    return first, second


# An operator of its own, so that nothing is fused into it. What could be is not worth it: a residual that is added to
# the sum makes each thread block wait for one more number, 10% for `down`.
@torch.library.custom_op("writing_in_the_margins::gemv", mutates_args=())
def gemv(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear for an input of one token, (1, …, 1, in_features), summed up in float32."""
    return _row_sums(input, weight, bias)


@gemv.register_kernel("cuda")
def _(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    with torch._dynamo.config.patch(recompile_limit=MAX_COMPILATIONS):
        return _row_sums_compiled(input, weight, bias)


@gemv.register_fake
def _(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return input.new_empty(*input.shape[:-1], weight.shape[0])


def _row_sums(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    in_features = weight.shape[1]
    n_parts = -(-in_features // PART) if in_features <= SHORT_ROW else 1
    n_parts = n_parts if in_features % n_parts == 0 else 1
    rows, x = weight.view(-1, n_parts, in_features // n_parts), input.view(n_parts, -1)
    first, *others = (rows[:, part].float() * x[part].float() for part in range(n_parts))
    sums = sum(others, first).sum(dim=-1)
    sums = sums if bias is None else sums + bias
    return sums.to(input.dtype).view(*input.shape[:-1], -1)


_row_sums_compiled = torch.compile(_row_sums, dynamic=False, fullgraph=True)
