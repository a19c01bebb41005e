"""The state of a training run: what a step changes, and how it is saved and found again."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from model.errors import InputError
from model.transformer import CausalLM
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
        """Write the state in one move, so that an interruption leaves the one before."""
        state = {
            "recipe": self.recipe,
            "step": self.step,
            "elapsed": self.elapsed,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(path.name + ".part")
        torch.save(state, beside)
        os.replace(beside, path)

    def load(self, path: Path) -> None:
        """Go on from a saved state. Raises InputError when it cannot be read, or is of another model or optimizer."""
        try:
            state = dict(torch.load(path, map_location="cpu", weights_only=True))
            saved, model, optimizers = dict(state["recipe"]), state["model"], state["optimizers"]
            step, elapsed = int(state["step"]), float(state["elapsed"])
        except Exception as error:  # other files raise nearly anything
            raise InputError(f"{path} is not the state of a run ({type(error).__name__}); remove it.") from None
        for name, value in self.recipe.items():
            if saved.get(name) != value:
                raise InputError(f"{path} is of a run with {name} {saved.get(name)}, not {value}; give what it had.")
        self.model.load_state_dict(model)
        for optimizer, optimizer_state in zip(self.optimizers, optimizers, strict=True):
            optimizer.load_state_dict(optimizer_state)
        self.step, self.elapsed = step, elapsed
