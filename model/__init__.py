"""Tensors and token ids, and no text: the architectures, one KV cache, sampling.

README.md says in which order to read it.
"""

from model.lazy import from_modules

# Each name is loaded from its module when it is first asked for (model/lazy.py).
MODULES = {
    "CausalLM": "transformer",
    "Gemma2": "gemma2",
    "InputError": "errors",
    "KVCache": "cache",
    "Llama": "llama",
    "Mistral": "mistral",
    "ModelConfig": "config",
    "Phi3": "phi3",
    "Qwen2": "qwen2",
    "Qwen3": "qwen3",
    "build_model": "families",
    "count_bytes": "families",
    "count_parameters": "families",
    "empty_model": "families",
}
__all__ = [*MODULES]
__getattr__ = from_modules(__name__, MODULES)
