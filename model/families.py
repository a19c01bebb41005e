"""Which architecture belongs to which `model_type`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from model.config import ModelConfig
from model.llama import Llama
from model.phi3 import Phi3
from model.qwen2 import Qwen2
from model.transformer import CausalLM

MODELS = {"llama": Llama, "phi3": Phi3, "qwen2": Qwen2}


def build_model(config: ModelConfig) -> CausalLM:
    """The model that a configuration describes, with uninitialised weights on the current default device."""
    return MODELS[config.model_type](config)


def count_parameters(config: ModelConfig, build: Callable[[ModelConfig], CausalLM] = build_model) -> int:
    """Elements of all parameters of the model that `build` makes, tied ones counted once.

    Takes no memory, and no time for many layers.
    """
    with torch.device("meta"):
        # All layers have the same sizes, so one tells the others'.
        none, one = (build(replace(config, num_hidden_layers=n_layers)) for n_layers in (0, 1))
    outside, with_one = (sum(parameter.numel() for parameter in model.parameters()) for model in (none, one))
    return outside + (with_one - outside) * config.num_hidden_layers
