"""Weight-only quantisation: the layers' matrices as 8-bit integers, everything that is computed as before.

A decode step reads every weight once for one token, so it takes as long as these bytes take to come from memory. Half the
bytes are half the memory, and nearly half the time. Each row of a matrix gets one scale, by which its largest number is
127, and every number is rounded to the nearest integer:

    scale_i = max_j |w_ij| / 127        q_ij = round(w_ij / scale_i)        w_ij = scale_i * q_ij + error_ij

    |error_ij| <= scale_i / 2           at most 1/254 of the row's largest number

A row is one output, so its scale can wait until after the sum:

    y_i  =  sum_j w_ij x_j  ~  scale_i * sum_j q_ij x_j

Activations stay floats: a few of their channels are a hundred times larger than the others, and one scale for all would
round the others away (LLM.int8, arXiv 2208.07339). gpt-fast (github.com/meta-pytorch/gpt-fast) quantises like this, too.
Norms are small; the embedding is read by rows; and the head stays, since rounding it changes every probability directly.
scripts/README.md says what was measured of all this.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.kernels.int8_product import int8_linear
from model.transformer import CausalLM

LARGEST = 127  # of the integers; -128 is not used, so that the range is symmetric


class Int8Linear(nn.Module):
    """nn.Linear with a quantised weight, of which `quantise` gives the values. For inference only.

    weight: (out_features, in_features) int8
    scale: (out_features,) float32
    bias: (out_features,) in the dtype that is computed in, or None
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True, device=None, dtype=None):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features

        def empty(*shape: int, dtype: torch.dtype | None) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)

        self.weight = empty(out_features, in_features, dtype=torch.int8)
        self.scale = empty(out_features, dtype=torch.float32)
        self.register_parameter("bias", empty(out_features, dtype=dtype) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features) of any float dtype; returns (..., out_features) in the same."""
        return int8_linear(x, self.weight, self.scale, self.bias)

    @torch.no_grad()
    def quantise(self, weight: Tensor) -> None:
        """Take the values of a float weight, (out_features, in_features)."""
        integers, scale = quantise(weight)
        self.weight.copy_(integers)
        self.scale.copy_(scale)


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight: (out, in), of any float dtype. Returns the integers, (out, in) int8, and the scales, (out,) float32."""
    weight = weight.float()
    scale = weight.abs().amax(dim=1) / LARGEST
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)  # a row of zeros has none
    return (weight / scale[:, None]).round_().to(torch.int8), scale


def use_int8(model: CausalLM) -> None:
    """Replace every linear layer of the stack, before the weights are loaded: on the meta device this takes no memory.

    The dtype of the biases stays. The architectures need not know.
    """
    for layer in model.model.layers:
        replaced = {}
        for name, linear in list(layer.named_modules()):
            if isinstance(linear, nn.Linear):
                owner, _, attribute = name.rpartition(".")
                like = {"device": linear.weight.device, "dtype": linear.weight.dtype}
                quantised = Int8Linear(linear.in_features, linear.out_features, linear.bias is not None, **like)
                setattr(layer.get_submodule(owner), attribute, quantised)
                replaced[linear] = quantised
        for fused in layer.fused_linears():
            fused.linears = tuple(replaced[linear] for linear in fused.linears)
