"""Which architecture belongs to which `model_type`: `qwen2` is the class `Qwen2` of model/qwen2.py, and so on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model.config import WEIGHTS, ModelConfig
from model.errors import InputError
from model.int8 import use_int8
from model.transformer import CausalLM

if TYPE_CHECKING:
    from model.parallel import Rank


def build_model(config: ModelConfig) -> CausalLM:
    """The model that a configuration describes, with uninitialised weights on the current default device."""
    module = import_module(f"model.{config.model_type}")
    return getattr(module, config.model_type.title().replace("_", ""))(config)


def empty_model(config: ModelConfig, dtype: torch.dtype, weights: str = "float", rank: Rank | None = None) -> CausalLM:
    """The model on the meta device: with no memory behind its parameters yet, which have the sizes and dtypes to come.

    dtype: what is computed in
    weights: what the matrices of the layers are kept in: "float" for `dtype`, or "int8" (model/int8.py)
    rank: only its part of the model (model/parallel.py)
    Raises InputError for other `weights`.
    """
    if weights not in WEIGHTS:
        raise InputError(f"weights is {weights!r}; choose one of: {', '.join(WEIGHTS)}.")
    with torch.device("meta"):
        model = build_model(config if rank is None else rank.share(config)).to(dtype)
    if weights == "int8":
        use_int8(model)
    return model if rank is None else rank.connect(model)


def count_parameters(config: ModelConfig) -> int:
    """Elements of all parameters of the model, tied ones counted once. Takes no memory, and no time for many layers."""
    return _sum_parameters(config, lambda parameter: parameter.numel(), torch.float32)


def count_bytes(config: ModelConfig, dtype: torch.dtype, weights: str = "float", rank: Rank | None = None) -> int:
    """Their bytes; see `empty_model`."""
    return _sum_parameters(config, lambda parameter: parameter.nbytes, dtype, weights, rank)


def _sum_parameters(config: ModelConfig, size: Callable[[Tensor], int], *kept_in: Any) -> int:
    # All layers have the same sizes, so one tells the others'.
    none, one = (empty_model(replace(config, num_hidden_layers=n_layers), *kept_in) for n_layers in (0, 1))
    outside, with_one = (sum(map(size, model.parameters())) for model in (none, one))
    return outside + (with_one - outside) * config.num_hidden_layers
