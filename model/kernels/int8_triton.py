"""The kernels of model/kernels/int8_product.py, in triton. This module imports it: import it only where there is one.

All of them read the matrix once. scripts/README.md says what was measured.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# How the work is cut: outputs and inputs of a tile, warps of a thread block, tiles on their way at a time.
ONE_ROW = {"INPUTS": 2048, "num_warps": 1}
FEW_ROWS = {"OUTPUTS": 32, "INPUTS": 256, "num_warps": 4, "num_stages": 4}
MORE_ROWS = {"OUTPUTS": 32, "INPUTS": 128, "num_warps": 4, "num_stages": 4}  # more than 16
EXPAND = {"INPUTS": 4096, "num_warps": 8}
LOAD = tl.constexpr(16)  # bytes that a thread loads at once


def product(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """See model.kernels.int8_product.int8_linear; x: bfloat16 or float16, contiguous, a few rows."""
    n_outputs, n_inputs = weight.shape
    n_rows = x.numel() // n_inputs
    out = x.new_empty(*x.shape[:-1], n_outputs)
    has_bias, bias = bias is not None, scale if bias is None else bias
    if n_rows == 1:
        whole = n_inputs % ONE_ROW["INPUTS"] == 0
        _one_row[n_outputs,](x, weight, scale, bias, out, n_inputs, has_bias, WHOLE=whole, **ONE_ROW)
    else:
        rows = max(16, triton.next_power_of_2(n_rows))  # the tensor cores want at least 16
        tile = FEW_ROWS if rows == 16 else MORE_ROWS
        blocks = triton.cdiv(n_outputs, tile["OUTPUTS"])
        _few_rows[blocks,](x, weight, scale, bias, out, n_rows, n_outputs, n_inputs, has_bias, ROWS=rows, **tile)
    return out


def expanded(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """scale[:, None] * weight, in `dtype`."""
    n_outputs, n_inputs = weight.shape
    out = torch.empty(weight.shape, dtype=dtype, device=weight.device)
    _expand[n_outputs, triton.cdiv(n_inputs, EXPAND["INPUTS"])](weight, scale, out, n_inputs, **EXPAND)
    return out


@triton.jit
def _one_row(x, weight, scale, bias, out, n_inputs, HAS_BIAS: tl.constexpr, WHOLE: tl.constexpr, INPUTS: tl.constexpr):
    """One output, by one warp: no thread waits for another one. Other warps' loads are on their way meanwhile."""
    output = tl.program_id(0)
    weight += output.to(tl.int64) * n_inputs
    sums = tl.zeros((INPUTS // LOAD,), tl.float32)
    for first in range(0, n_inputs, INPUTS):
        inputs = first + tl.arange(0, INPUTS)
        if WHOLE:
            w, a = tl.load(weight + inputs), tl.load(x + inputs)
        else:
            is_input = inputs < n_inputs
            w, a = tl.load(weight + inputs, mask=is_input, other=0), tl.load(x + inputs, mask=is_input, other=0)
        products = _as_float32(w) * a.to(tl.float32)
        sums += tl.sum(tl.reshape(products, (INPUTS // LOAD, LOAD)), axis=1)  # each thread its own: few registers
    y = tl.sum(sums) * tl.load(scale + output)
    if HAS_BIAS:
        y += tl.load(bias + output).to(tl.float32)
    tl.store(out + output, y.to(out.dtype.element_ty))


@triton.jit
def _as_float32(w):
    """int8 to float32 by a sum: w in the last bits of 1.5 * 2**23 is 1.5 * 2**23 + w."""
    return (w.to(tl.int32) + 0x4B400000).to(tl.float32, bitcast=True) - 12582912.0


@triton.jit
def _few_rows(
    x, weight, scale, bias, out, n_rows, n_outputs, n_inputs, HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """Some outputs of all rows, by the tensor cores."""
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


@triton.jit
def _expand(weight, scale, out, n_inputs, INPUTS: tl.constexpr):
    output = tl.program_id(0)
    inputs = tl.program_id(1) * INPUTS + tl.arange(0, INPUTS)
    at, is_input = output.to(tl.int64) * n_inputs + inputs, inputs < n_inputs
    # By way of bfloat16, which holds -127 to 127 exactly; directly was not measured here.
    w = tl.load(weight + at, mask=is_input, other=0).to(tl.bfloat16).to(tl.float32) * tl.load(scale + output)
    tl.store(out + at, w.to(out.dtype.element_ty), mask=is_input)
