"""Layers compiled by torch.compile, for reading. Decode steps have another way (model/kernels/flex_rows.py)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from model.transformer import Attend, Rotary, RunLayer

# torch.compile gives up on a function after so many compilations; each family, dtype and number of rows needs its own.
MAX_COMPILATIONS = 64


@cache
def compiled_layers(backend: str | Callable = "inductor") -> RunLayer:
    """How layers are run after `CausalLM.compile_layers`: compiled, but for attention, which stays as it is.

    One compilation serves all layers and lengths; another family or dtype needs its own.
    """
    dynamo = torch._dynamo  # loading it takes seconds, so nothing does before this
    dynamo.config.recompile_limit = max(dynamo.config.recompile_limit, MAX_COMPILATIONS)
    compiled = torch.compile(_call, dynamic=True, backend=backend)
    as_it_is = dynamo.disable(lambda attend, *args: attend(*args))
    return lambda layer, layer_idx, x, rotary, context: compiled(
        layer, x, rotary, partial(as_it_is, partial(context.attend, layer_idx))
    )


def _call(layer: nn.Module, x: Tensor, rotary: Rotary, attend: Attend) -> Tensor:
    return layer(x, rotary, attend)
