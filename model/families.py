"""Which architecture belongs to which `model_type`: `qwen2` is the class `Qwen2` of model/qwen2.py, and so on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import import_module

import torch

from model.config import ModelConfig
from model.transformer import CausalLM


def build_model(config: ModelConfig) -> CausalLM:
    """The model that a configuration describes, with uninitialised weights on the current default device."""
    module = import_module(f"model.{config.model_type}")
    return getattr(module, config.model_type.title().replace("_", ""))(config)


def count_parameters(config: ModelConfig, build: Callable[[ModelConfig], CausalLM] = build_model) -> int:
    """Elements of all parameters of the model that `build` makes, tied ones counted once.

    Takes no memory, and no time for many layers.
    """
    with torch.device("meta"):
        # All layers have the same sizes, so one tells the others'.
        none, one = (build(replace(config, num_hidden_layers=n_layers)) for n_layers in (0, 1))
    outside, with_one = (sum(parameter.numel() for parameter in model.parameters()) for model in (none, one))
    return outside + (with_one - outside) * config.num_hidden_layers
