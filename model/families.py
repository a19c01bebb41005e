"""Which architecture belongs to which `model_type`."""

from __future__ import annotations

from model.config import ModelConfig
from model.llama import Llama
from model.phi3 import Phi3
from model.qwen2 import Qwen2
from model.transformer import CausalLM

MODELS = {"llama": Llama, "phi3": Phi3, "qwen2": Qwen2}


def build_model(config: ModelConfig) -> CausalLM:
    """The model that a configuration describes, with uninitialised weights on the current default device."""
    return MODELS[config.model_type](config)
