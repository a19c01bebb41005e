"""A few rows times an int8 matrix, at the memory's speed, by a kernel in triton.

Each thread block reads some rows of the matrix once, whatever the number of rows of `x`, turns them into floats in its
registers and adds up in float32. One row is summed up as it comes; several go to the tensor cores, which want at least 16.

This module imports triton: import it only on CUDA.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def int8_rows(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """See model.kernels.int8_product.int8_linear; x: bfloat16 or float16."""
    n_outputs, n_inputs = weight.shape
    rows = x.reshape(-1, n_inputs).contiguous()
    out = torch.empty(len(rows), n_outputs, dtype=x.dtype, device=x.device)
    has_bias, bias = bias is not None, scale if bias is None else bias
    if len(rows) == 1:
        size = 2
        _one_row[triton.cdiv(n_outputs, size),](
            rows, weight, scale, bias, out, n_outputs, n_inputs, has_bias, OUTPUTS=size, INPUTS=2048, num_warps=4
        )
    else:
        size, padded = 32, max(16, triton.next_power_of_2(len(rows)))
        _few_rows[triton.cdiv(n_outputs, size),](
            rows, weight, scale, bias, out, len(rows), n_outputs, n_inputs, has_bias,
            ROWS=padded, OUTPUTS=size, INPUTS=128, num_warps=4, num_stages=4,
        )  # fmt: skip
    return out.view(*x.shape[:-1], n_outputs)


@triton.jit
def _one_row(
    x, weight, scale, bias, out, n_outputs, n_inputs, HAS_BIAS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr
):
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_output = outputs < n_outputs
    starts = outputs.to(tl.int64) * n_inputs
    sums = tl.zeros((OUTPUTS, INPUTS), tl.float32)
    for first in range(0, n_inputs, INPUTS):
        inputs = first + tl.arange(0, INPUTS)
        is_input = inputs < n_inputs
        w = tl.load(weight + starts[:, None] + inputs[None, :], mask=is_output[:, None] & is_input[None, :], other=0)
        sums += w.to(tl.float32) * tl.load(x + inputs, mask=is_input, other=0).to(tl.float32)[None, :]
    y = tl.sum(sums, axis=1) * tl.load(scale + outputs, mask=is_output, other=0)
    if HAS_BIAS:
        y += tl.load(bias + outputs, mask=is_output, other=0).to(tl.float32)
    tl.store(out + outputs, y.to(out.dtype.element_ty), mask=is_output)


@triton.jit
def _few_rows(
    x, weight, scale, bias, out, n_rows, n_outputs, n_inputs, HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    outputs = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    rows = tl.arange(0, ROWS)
    is_output, is_row = outputs < n_outputs, rows < n_rows
    starts = outputs.to(tl.int64) * n_inputs
    sums = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for first in range(0, n_inputs, INPUTS):
        inputs = first + tl.arange(0, INPUTS)
        is_input = inputs < n_inputs
        a = tl.load(x + rows[:, None] * n_inputs + inputs[None, :], mask=is_row[:, None] & is_input[None, :], other=0)
        w = tl.load(weight + starts[None, :] + inputs[:, None], mask=is_output[None, :] & is_input[:, None], other=0)
        sums = tl.dot(a, w.to(a.dtype), sums)
    y = sums * tl.load(scale + outputs, mask=is_output, other=0)[None, :]
    if HAS_BIAS:
        y += tl.load(bias + outputs, mask=is_output, other=0).to(tl.float32)[None, :]
    places = rows[:, None] * n_outputs + outputs[None, :]
    tl.store(out + places, y.to(out.dtype.element_ty), mask=is_row[:, None] & is_output[None, :])
