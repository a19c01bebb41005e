"""A few tokens, or many, times an int8 matrix (model/int8.py).

A few tokens: their product takes as long as the matrix takes to come from memory, so it must come as int8. No kernel of
PyTorch does that well on a GPU, so there is one of our own (model/kernels/int8_rows.py), which needs triton, as PyTorch for
CUDA brings it along.

Many tokens: their product is bound by arithmetic, and the matrix library is fastest. So the matrix is expanded first, which
takes as long as reading it and writing it, and is forgotten afterwards: there is never more than one in memory.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 64  # rows of `x` up to which the matrix is read as int8
ROW_KERNELS = ("cuda",) if find_spec("triton") else ()  # where there is a kernel for it


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear with the weight scale[:, None] * weight.

    x: (..., in_features); weight: (out_features, in_features) int8; scale: (out_features,) float32
    bias: (out_features,) in the dtype of x. Returns (..., out_features) in the dtype of x.
    """
    n_rows = x.shape[:-1].numel()
    if n_rows <= FEW and x.device.type in ROW_KERNELS and x.dtype.itemsize == 2:
        return torch.ops.writing_in_the_margins.int8_rows(x, weight, scale, bias)
    return F.linear(x, expanded(weight, scale, x.dtype), bias)


def expanded(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """scale[:, None] * weight in `dtype`, made by one kernel."""
    if torch.compiler.is_compiling():
        return (weight * scale[:, None]).to(dtype)
    return torch.mul(weight, scale[:, None], out=torch.empty(weight.shape, dtype=dtype, device=weight.device))


# An operator, so that torch.compile takes it as it is. Not by torch.library.custom_op, which imports the compiler at the
# first call.
library = torch.library.Library("writing_in_the_margins", "FRAGMENT")
library.define("int8_rows(Tensor x, Tensor weight, Tensor scale, Tensor? bias) -> Tensor")


@torch.library.impl(library, "int8_rows", "CUDA")
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    from model.kernels.int8_rows import int8_rows  # loads triton

    return int8_rows(x, weight, scale, bias)


@torch.library.register_fake("writing_in_the_margins::int8_rows", lib=library)
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
