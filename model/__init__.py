"""Tensors and token ids, and no text: three architectures, one KV cache, sampling.

README.md says in which order to read it.
"""

from importlib import import_module

# Each name is loaded from its module when it is first asked for: an error needs no torch, which takes seconds.
MODULES = {
    "CausalLM": "transformer",
    "InputError": "errors",
    "KVCache": "cache",
    "Llama": "llama",
    "ModelConfig": "config",
    "Phi3": "phi3",
    "Qwen2": "qwen2",
    "build_model": "families",
    "count_parameters": "families",
}
__all__ = [*MODULES]


def __getattr__(name: str) -> object:
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{MODULES[name]}"), name)
