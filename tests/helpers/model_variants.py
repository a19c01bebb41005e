"""The variants of the three architectures that are in use, as tiny configurations: one row each.

A test that is parametrised over `VARIANTS` covers a new architecture, or a new option of one, as soon as it has a row here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model import CausalLM, build_model
from model.cache import KVCache
from weights.config import read_model_config

VOCABULARY = 120
NAMES = {"llama": "LlamaForCausalLM", "phi3": "Phi3ForCausalLM", "qwen2": "Qwen2ForCausalLM"}


@dataclass(frozen=True)
class Variant:
    """A row: a checkpoint's config.json and a run that shows what is special about it.

    config: what it says beyond `base_config`
    prompt: how many tokens the run reads before it continues
    without: the change to the configuration that switches the option off, which must show in the logits; None for options
        that change the shape of the weights, and for defaults
    options: attention options that no family has yet: no transformers model computes the same
    """

    name: str
    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    prompt: int = 40
    without: dict[str, Any] | None = None
    options: dict[str, float] = field(default_factory=dict)

    def full_config(self, **changes: Any) -> dict[str, Any]:
        return base_config(self.kind) | self.config | changes


def base_config(kind: str) -> dict[str, Any]:
    """A published-style config.json of the plainest model of a kind."""
    return {
        "architectures": [NAMES[kind]],
        "model_type": kind,
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
# One divisor for each of the 8 frequencies of a head of 16 channels.
SHORT, LONG = [1.0 + 0.05 * i for i in range(8)], [1.5 + i for i in range(8)]
LONGROPE = {"type": "longrope", "short_factor": SHORT, "long_factor": LONG}
PARTIAL = {"type": "longrope", "short_factor": SHORT[:6], "long_factor": LONG[:6]}
QWEN2_WINDOW = {"use_sliding_window": True, "sliding_window": 16, "num_hidden_layers": 3}
ONE_LAYER_SLIDES = ["full_attention", "sliding_attention", "full_attention"]

VARIANTS = [
    Variant("llama", "llama"),
    Variant("llama-llama3", "llama", {"rope_scaling": LLAMA3}, 150, without={"rope_scaling": None}),
    Variant("llama-linear", "llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, without={"rope_scaling": None}),
    Variant("llama-theta", "llama", {"rope_theta": 500.0}, without={"rope_theta": 10000.0}),
    Variant("llama-mha", "llama", {"num_key_value_heads": 4}),
    Variant("llama-mqa", "llama", {"num_key_value_heads": 1}),
    Variant("llama-head-dim", "llama", {"head_dim": 24}),
    Variant("llama-head-64", "llama", {"head_dim": 64}),
    Variant("llama-head-96", "llama", {"head_dim": 96}),
    Variant("llama-head-128", "llama", {"head_dim": 128}),
    Variant("llama-tied", "llama", {"tie_word_embeddings": True}),
    Variant("llama-biases", "llama", {"attention_bias": True, "mlp_bias": True}),
    Variant("qwen2", "qwen2"),
    Variant("qwen2-mha-tied", "qwen2", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    Variant("qwen2-yarn", "qwen2", {"rope_scaling": YARN}, 100, without={"rope_scaling": None}),
    Variant(
        "qwen2-yarn-mscale",
        "qwen2",
        {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 8, "beta_slow": 2}},
        100,
        without={"rope_scaling": YARN},
    ),
    Variant("qwen2-window", "qwen2", QWEN2_WINDOW | {"max_window_layers": 1}, without={"use_sliding_window": False}),
    Variant("qwen2-window-unused", "qwen2", QWEN2_WINDOW | {"use_sliding_window": False, "max_window_layers": 0}),
    Variant("qwen2-layer-types", "qwen2", QWEN2_WINDOW | {"layer_types": ONE_LAYER_SLIDES}, without={"layer_types": None}),
    Variant("phi3", "phi3"),
    Variant("phi3-mha", "phi3", {"num_key_value_heads": 4}),
    Variant("phi3-head-96", "phi3", {"hidden_size": 192, "num_attention_heads": 2, "num_key_value_heads": 2}),
    Variant("phi3-window", "phi3", {"sliding_window": 15}, without={"sliding_window": None}),
    Variant("phi3-window-wide", "phi3", {"sliding_window": 1024}),
    Variant(
        "phi3-longrope-short",
        "phi3",
        {"rope_scaling": LONGROPE, "original_max_position_embeddings": 128},
        without={"rope_scaling": None},
    ),
    Variant(
        "phi3-longrope-long",
        "phi3",
        {"rope_scaling": LONGROPE, "original_max_position_embeddings": 32},
        without={"original_max_position_embeddings": 400},
    ),
    Variant(
        "phi3-partial",
        "phi3",
        {"rope_scaling": PARTIAL, "original_max_position_embeddings": 32, "partial_rotary_factor": 0.75},
        without={"original_max_position_embeddings": 400},
    ),
    Variant("phi3-partial-default", "phi3", {"partial_rotary_factor": 0.75}, without={"partial_rotary_factor": 1.0}),
    Variant("phi3-tied", "phi3", {"tie_word_embeddings": True}),
]

# Not published ones.
CAPPED = {"soft_cap": 3.0, "scale": 0.4}
ODD = [
    Variant("capped", "llama", options=CAPPED),
    Variant("capped-window", "phi3", {"sliding_window": 15}, options=CAPPED),
    Variant("scaled", "llama", options={"scale": 0.4}),
]

# Those that reach every branch of the attention and the cache.
ATTENDING = [
    *(variant.name for variant in ODD),
    "llama",
    "llama-mha",
    "llama-llama3",
    "qwen2",
    "qwen2-window",
    "qwen2-layer-types",
    "phi3-window",
    "phi3-partial",
]


def variants(*names: str) -> pytest.MarkDecorator:
    """Parametrise a test's `variant` over those rows, or over all."""
    rows = [variant for variant in VARIANTS + ODD if variant.name in names] if names else VARIANTS
    return pytest.mark.parametrize("variant", rows, ids=[variant.name for variant in rows])


def random_tokens(n: int, seed: int = 0) -> list[int]:
    return torch.randint(1, VOCABULARY, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0) -> None:
    """Weights large enough that attention picks and logits differ: their standard deviation is about 2."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator, device="cpu")
        if "norm" in name:
            values = 1 + 0.2 * values
        elif parameter.dim() == 1:  # a bias
            values = 0.5 * values
        else:
            values = values * 1.5 * parameter.shape[-1] ** -0.5
        parameter.copy_(values)


def tiny_model(variant: Variant, planned: int, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> CausalLM:
    """The variant's model with random weights, planned for a run of so many positions."""
    model = build_model(read_model_config(variant.full_config()))
    randomise(model)
    for layer in model.model.layers:
        layer.self_attn.options = replace(layer.self_attn.options, **variant.options)
    model.set_max_length(planned)
    return model.to(device, dtype).eval().requires_grad_(False)


@torch.no_grad()
def read(model: CausalLM, cache: KVCache, token_ids: list[int]) -> torch.Tensor:
    """Prefill token ids; the logits of the last, (vocab_size,)."""
    return model(torch.tensor([token_ids], device=cache.storage.device), cache)[0, -1]


def write_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
