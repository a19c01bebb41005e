"""Tensors and token ids, and no text: three architectures, one KV cache, sampling. In which order to read: README.md."""

import os

# Works only if this package is imported before torch: idle threads spin for some microseconds and then sleep. On two cores
# the demo takes 6.6 s so, and 11 s beside two busy processes; with torch's own setting 6.0 s and 66 s.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "4000")

from model.cache import KVCache
from model.config import ModelConfig
from model.errors import InputError
from model.llama import Llama
from model.phi3 import Phi3
from model.qwen2 import Qwen2
from model.transformer import CausalLM

MODELS = {"llama": Llama, "phi3": Phi3, "qwen2": Qwen2}


def build_model(config: ModelConfig) -> CausalLM:
    """The model that a configuration describes, with uninitialised weights on the current default device."""
    return MODELS[config.model_type](config)


__all__ = ["KVCache", "CausalLM", "InputError", "Llama", "ModelConfig", "Phi3", "Qwen2", "build_model"]
