"""The state of a training run: what a step changes, and how it is saved and found again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from model.errors import InputError
from model.transformer import CausalLM
from training.folder import in_one_move
from training.objective import kind_weights, objective

MAX_GRADIENT = 1.0  # the norm that gradients are clipped to
LossFunction = Callable[..., tuple[Tensor, Tensor]]


def make_loss(model: CausalLM, text_loss: float, device: torch.device) -> LossFunction:
    """`objective` of this model, compiled as one graph of fixed shapes on CUDA (FlexAttention is slow uncompiled)."""
    weights = torch.tensor(kind_weights(text_loss), device=device)

    def loss_of(*fields: Tensor) -> tuple[Tensor, Tensor]:
        return objective(model, weights, *fields)

    # Frequencies are no buffer, so they stay behind when the model moves; compiled code should not be what moves them.
    model.model.rotary.inv_freq = model.model.rotary.inv_freq.to(device)
    return torch.compile(loss_of, fullgraph=True, dynamic=False) if device.type == "cuda" else loss_of


@dataclass
class Run:
    """A model in training.

    recipe: what a saved state must agree in to be loaded, by name
    step: how many steps were made; it is all that tells which batch is next
    elapsed: seconds of training, compilation not counted
    """

    model: CausalLM
    optimizers: list[Optimizer]
    recipe: dict[str, Any]
    step: int = 0
    elapsed: float = 0.0

    def update(self, loss_of: LossFunction, batch: Tensor, lr: float) -> Tensor:
        """One step. batch: (len(FIELDS), batch, T) int32 on the model's device. Returns the figures of `objective`."""
        loss, figures = loss_of(*batch.unbind(0))
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return figures

    def save(self, path: Path) -> None:
        """Write the state. Raises InputError where it cannot be written; the one before is still there then."""
        state = {
            "recipe": self.recipe,
            "step": self.step,
            "elapsed": self.elapsed,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        with in_one_move(path) as beside:
            torch.save(state, beside)

    def load(self, path: Path) -> None:
        """Go on from a saved state. Raises InputError when it cannot be read, or is of another model or optimizer."""
        try:
            state = dict(torch.load(path, map_location="cpu", weights_only=True))
            saved, model, optimizers = dict(state["recipe"]), state["model"], state["optimizers"]
            step, elapsed = int(state["step"]), float(state["elapsed"])
            if step < 0 or not 0 <= elapsed < math.inf:
                raise ValueError
        except Exception as error:  # other files raise nearly anything
            raise InputError(f"{path} is not the state of a run ({type(error).__name__}); remove it.") from None
        for name, value in self.recipe.items():
            if saved.get(name, value) != value:
                raise InputError(f"{path} is of a run with {name} {saved.get(name)}, not {value}; give what it had.")
        try:
            _check_tensors(model, self.model.state_dict())
            self.model.load_state_dict(model)
            for optimizer, optimizer_state in zip(self.optimizers, optimizers, strict=True):
                _check_optimizer(optimizer_state, optimizer, step)
                optimizer.load_state_dict(optimizer_state)
        except Exception as error:  # what torch finds wrong it tells over many lines
            raise InputError(f"{path} does not hold the state of this run ({type(error).__name__}); remove it.") from None
        self.step, self.elapsed = step, elapsed


def _check_tensors(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Raises ValueError where tensors are not those of this model, or hold NaN or infinity."""
    if {name: (t.shape, t.dtype) for name, t in found.items()} != {name: (t.shape, t.dtype) for name, t in wanted.items()}:
        raise ValueError("other tensors")
    if not all(torch.isfinite(tensor).all() for tensor in found.values()):
        raise ValueError("no numbers")


def _check_optimizer(found: dict[str, Any], optimizer: Optimizer, step: int) -> None:
    """Raises ValueError where a saved state is not one of this optimizer; what it would do shows only steps later."""
    own = optimizer.state_dict()
    rules = [
        [{name: value for name, value in group.items() if name not in ("lr", "fused")} for group in state["param_groups"]]
        for state in (found, own)
    ]
    if rules[0] != rules[1]:
        raise ValueError("other settings")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if step and found["state"].keys() != set(range(len(parameters))):
        raise ValueError("no state of some parameters")
    for index, state in found["state"].items():
        for tensor in state.values():
            if tensor.dim() and tensor.shape != parameters[index].shape or not torch.isfinite(tensor).all():
                raise ValueError("other tensors")
