"""Initial weights, optimizers and the learning rate."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from model.transformer import CausalLM

DECAY_FROM = 0.6  # the learning rate falls linearly over the rest of the run
RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj.weight")  # what is added to the residual stream, in all families


def initialise(model: CausalLM, seed: int) -> None:
    """Weights normal with deviation 0.02, less where 2 x n_layers outputs add up (GPT-2); biases zero, norms one."""
    generator = torch.Generator().manual_seed(seed)
    scale = (2 * model.config.num_hidden_layers) ** -0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                deviation = 0.02 * (scale if name.endswith(RESIDUAL_OUTPUTS) else 1.0)
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, deviation, generator=generator))
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.fill_(1.0)


def make_optimizers(model: nn.Module, name: str, lr: float, fused: bool) -> list[Optimizer]:
    """AdamW for all parameters, or Muon for the matrices inside the layers and AdamW for the rest.

    Matrices decay, vectors do not. Muon's step is scaled to the size of AdamW's, so the same learning rate suits both.
    """
    hidden, matrices, vectors = [], [], []
    for parameter_name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            vectors.append(parameter)
        elif name == "muon" and ".layers." in parameter_name:
            hidden.append(parameter)
        else:
            matrices.append(parameter)
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizers: list[Optimizer] = [AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=fused)]
    if hidden:
        optimizers.append(torch.optim.Muon(hidden, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def lr_factor(done: float, step: int, warmup: int) -> float:
    """What the learning rate is multiplied with, `done` (0 to 1) of the way through the run."""
    return min(1.0, (step + 1) / max(1, warmup), (1.0 - done) / (1.0 - DECAY_FROM))
