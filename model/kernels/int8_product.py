"""The product with an int8 matrix (model/int8.py), as one operator, which torch.compile takes as it is.

PyTorch has no such product for CUDA that is not slower than the bfloat16 one, so there are kernels of our own in triton
(model/kernels/int8_triton.py), which PyTorch for CUDA brings along. Microseconds for the matrices of a layer of
Llama-3.1-8B, PyTorch 2.11, 2026-11-28, in two runs, each on one H200; at the rate of a copy the 218 MB take 52:

    rows of x, first run                                        1        16        64     4,096
    F.linear, bfloat16                                        138       127       134     2,250
    torch._weight_int8pack_mm                               1,984
    torch._int_mm, x as three int8 digits                     256       293
    torch.mul of matrix and scale, then F.linear            1,010     1,001               3,197
    sums over rows, by torch.compile                          102
    second run
    F.linear, bfloat16                                        128                 141
    the kernels here (one row: 67 to 69 since then)            77        87       195

Few rows take as long as the matrix takes to come from memory, so it must come as int8. Many rows are bound by arithmetic,
and the matrix library is fastest. So the matrix is expanded first, which takes 175 microseconds a layer, and forgotten
afterwards: there is never more than one in memory. Without triton, PyTorch expands it for any number
of rows.

On a CPU a fresh float matrix cost the most where it was measured, for its pages. So few rows take the matrix in slabs that
stay in the cache, as bare integers; the scale comes after the sum. Milliseconds for 17,920 x 1,536, one thread of a busy
x86-64 with AVX-512 (PyTorch 2.13, best of some calls):

    rows of x                                 1      4     16     64    512
    F.linear, float32                       7.2     17     25     60    325
    expanded, then F.linear                 110    118    133    156    435
    in slabs                                4.4    8.2     15     48    363
    F.linear, bfloat16                      4.9    5.0    7.7     20    132
    expanded, then F.linear                 127    137    144    162    284
    in slabs                                6.1           9.6     25    191
    torch._weight_int8pack_mm               2.8    4.3     17     71
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 64  # rows of x up to which the matrix is read as int8: they take 195 microseconds, expanded 175 + 141; 128 take 320
FEW_ON_CPU = 512
SLAB = 4 << 20  # bytes: as much of a matrix as a CPU keeps in its cache
PACKED = 4  # rows of bfloat16, up to which PyTorch's own product is faster on a CPU than slabs


@cache
def triton_is_there() -> bool:
    """Looked for once, as every product of every layer asks."""
    return find_spec("triton") is not None


# An operator, but not by torch.library.custom_op, which imports the compiler at the first call.
library = torch.library.Library("writing_in_the_margins", "FRAGMENT")
library.define("int8_linear(Tensor x, Tensor weight, Tensor scale, Tensor? bias) -> Tensor")
int8_linear = torch.ops.writing_in_the_margins.int8_linear


@torch.library.impl(library, "int8_linear", "CompositeExplicitAutograd")
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """F.linear with the weight scale[:, None] * weight.

    x: (..., in_features); weight: (out_features, in_features) int8; scale: (out_features,) float32
    bias: (out_features,) in the dtype of x. Returns (..., out_features) in the dtype of x.
    """
    n_rows = x.shape[:-1].numel()
    if x.device.type == "cpu" and n_rows <= FEW_ON_CPU and x.dtype != torch.float16:  # its sums overflow without the scale
        y = _sums_on_cpu(x.reshape(n_rows, -1), weight).reshape(*x.shape[:-1], -1)
        return torch.addcmul(y.new_zeros(()) if bias is None else bias, y, scale).to(x.dtype)
    if x.device.type != "cuda" or not triton_is_there():
        expanded = torch.mul(weight, scale[:, None], out=weight.new_empty(weight.shape, dtype=x.dtype))
        return F.linear(x, expanded, bias)
    from model.kernels import int8_triton

    if n_rows <= FEW and x.dtype.itemsize == 2:
        return int8_triton.product(x.contiguous(), weight, scale, bias)
    return F.linear(x, int8_triton.expanded(weight, scale, x.dtype), bias)


def _sums_on_cpu(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T in the dtype of x: (n_rows, out_features). The matrix is read once, as int8."""
    n_rows, (n_outputs, n_inputs) = len(x), weight.shape
    if x.dtype == torch.bfloat16 and n_rows <= PACKED:
        return torch._weight_int8pack_mm(x.contiguous(), weight, x.new_ones(n_outputs))
    n_slab = max(1, SLAB // (n_inputs * x.itemsize))
    slab, sums = x.new_empty(n_slab, n_inputs), x.new_empty(n_rows, n_outputs)
    for first in range(0, n_outputs, n_slab):
        part = weight[first : first + n_slab]  # integers up to 127 are exact in bfloat16, too
        sums[:, first : first + n_slab] = F.linear(x, slab[: len(part)].copy_(part))
    return sums


@torch.library.register_fake("writing_in_the_margins::int8_linear", lib=library)
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
