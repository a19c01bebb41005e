"""The variants of all families that are in use, as tiny configurations: one row each.

From these rows every test takes its parametrisation, so a new family, or a new option of one, is tested as soon as it has a
row here: against transformers, with cache, branches, packed prompts, attention mass and decode graphs (emulated on a CPU),
from a checkpoint folder, and in the loop. `pytest --family NAME` runs the rows of one family (tests/conftest.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model import CausalLM, build_model
from model.cache import KVCache
from weights.config import read_model_config
from weights.families import FAMILIES

VOCABULARY = 120
NAMES = {kind: family.architecture for kind, family in FAMILIES.items()}
LEFT_OUT = "left out"  # a value for keys that the file does not have, so that the family's default counts


def usual_weights(name: str, noise: Tensor) -> Tensor:
    """Weights large enough that attention picks and logits differ: the logits' standard deviation is about 2.

    name: of a parameter; noise: standard normal numbers in its shape
    """
    if "norm" in name:
        return 1 + 0.2 * noise
    return 0.5 * noise if noise.dim() == 1 else noise * 1.5 * noise.shape[-1] ** -0.5  # a bias, or a matrix


@dataclass(frozen=True)
class Variant:
    """A row: a checkpoint's config.json and a run that shows what is special about it.

    kind: the family, by its name in weights/families.py
    config: what config.json says beyond `base_config`, or LEFT_OUT
    prompt: how many tokens the run reads before it continues
    without: the change to the configuration that switches the option off, which must show in the logits; None for options
        that change the shape of the weights, and for defaults
    attends: reads the cache in a way of its own, so the long tests of cache and branches take it too
    reader: the loop runs over it: its config.json's options there, where a document has some hundred tokens
    weights: its random weights, as `usual_weights`
    options: attention options that no family has yet: no transformers model computes the same
    """

    name: str
    kind: str
    config: dict[str, Any] = field(default_factory=dict)
    prompt: int = 40
    without: dict[str, Any] | None = None
    attends: bool = False
    reader: dict[str, Any] | None = None
    weights: Callable[[str, Tensor], Tensor] = usual_weights
    options: dict[str, float] = field(default_factory=dict)

    def full_config(self, **changes: Any) -> dict[str, Any]:
        whole = base_config(self.kind) | self.config | changes
        return {key: value for key, value in whole.items() if value is not LEFT_OUT}

    def __repr__(self) -> str:
        return self.name


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
        FAMILIES[kind].activation_key: FAMILIES[kind].activations[0],
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
READER_LONGROPE = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
QWEN_WINDOW = {"use_sliding_window": True, "sliding_window": 16, "num_hidden_layers": 3}
ONE_LAYER_SLIDES = ["full_attention", "sliding_attention", "full_attention"]
UPPER_SLIDE = {"use_sliding_window": True, "sliding_window": 70, "max_window_layers": 1}

GEMMA2 = {"head_dim": 24, "sliding_window": 15, "query_pre_attn_scalar": 7}
GEMMA2 |= {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}
GEMMA2_READER = {"head_dim": 16, "sliding_window": 50}


def beyond_one(name: str, noise: Tensor) -> Tensor:
    """For norms that multiply by 1 + weight."""
    return usual_weights(name, noise) - (1 if "norm" in name else 0)


# The first row of a family is its plainest checkpoint, and takes part in every test.
VARIANTS = [
    Variant("llama", "llama", reader={}),
    Variant("llama-llama3", "llama", {"rope_scaling": LLAMA3}, 150, without={"rope_scaling": None}, attends=True),
    Variant("llama-linear", "llama", {"rope_scaling": {"type": "linear", "factor": 4.0}}, without={"rope_scaling": None}),
    Variant("llama-theta", "llama", {"rope_theta": 500.0}, without={"rope_theta": 10000.0}),
    Variant("llama-mha", "llama", {"num_key_value_heads": 4}, attends=True),
    Variant("llama-mqa", "llama", {"num_key_value_heads": 1}),
    Variant("llama-head-dim", "llama", {"head_dim": 24}),
    Variant("llama-head-64", "llama", {"head_dim": 64}),
    Variant("llama-head-96", "llama", {"head_dim": 96}),
    Variant("llama-head-128", "llama", {"head_dim": 128}),
    Variant("llama-tied", "llama", {"tie_word_embeddings": True}),
    Variant("llama-biases", "llama", {"attention_bias": True, "mlp_bias": True}),
    Variant("qwen2", "qwen2", reader={}),
    Variant("qwen2-mha-tied", "qwen2", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    Variant("qwen2-yarn", "qwen2", {"rope_scaling": YARN}, 100, without={"rope_scaling": None}),
    Variant(
        "qwen2-yarn-mscale",
        "qwen2",
        {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5, "beta_fast": 8, "beta_slow": 2}},
        100,
        without={"rope_scaling": YARN},
    ),
    Variant(
        "qwen2-window",
        "qwen2",
        QWEN_WINDOW | {"max_window_layers": 1},
        without={"use_sliding_window": False},
        attends=True,
        reader=UPPER_SLIDE,
    ),
    Variant("qwen2-window-unused", "qwen2", QWEN_WINDOW | {"use_sliding_window": False, "max_window_layers": 0}),
    Variant(
        "qwen2-layer-types",
        "qwen2",
        QWEN_WINDOW | {"layer_types": ONE_LAYER_SLIDES},
        without={"layer_types": None},
        attends=True,
    ),
    Variant("phi3", "phi3", reader={}),
    Variant("phi3-mha", "phi3", {"num_key_value_heads": 4}),
    Variant("phi3-head-96", "phi3", {"hidden_size": 192, "num_attention_heads": 2, "num_key_value_heads": 2}),
    Variant(
        "phi3-window",
        "phi3",
        {"sliding_window": 15},
        without={"sliding_window": None},
        attends=True,
        reader={"sliding_window": 50},
    ),
    Variant("phi3-window-wide", "phi3", {"sliding_window": 1024}),
    Variant(
        "phi3-longrope-short",
        "phi3",
        {"rope_scaling": LONGROPE, "original_max_position_embeddings": 128},
        without={"rope_scaling": None},
    ),
    Variant(
        "phi3-longrope",
        "phi3",
        {"rope_scaling": LONGROPE, "original_max_position_embeddings": 32},
        without={"original_max_position_embeddings": 400},
        reader={"rope_scaling": READER_LONGROPE, "original_max_position_embeddings": 64},
    ),
    Variant(
        "phi3-partial",
        "phi3",
        {"rope_scaling": PARTIAL, "original_max_position_embeddings": 32, "partial_rotary_factor": 0.75},
        without={"original_max_position_embeddings": 400},
        attends=True,
    ),
    Variant("phi3-partial-default", "phi3", {"partial_rotary_factor": 0.75}, without={"partial_rotary_factor": 1.0}),
    Variant("phi3-tied", "phi3", {"tie_word_embeddings": True}),
    Variant("qwen3", "qwen3", {"head_dim": 24}, reader={"head_dim": 32}),
    Variant(
        "qwen3-defaults",
        "qwen3",
        dict.fromkeys(("head_dim", "rms_norm_eps", "rope_theta", "tie_word_embeddings"), LEFT_OUT),
    ),
    Variant("qwen3-tied", "qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    Variant("qwen3-biases", "qwen3", {"head_dim": 16, "attention_bias": True}),
    Variant("qwen3-yarn", "qwen3", {"head_dim": 16, "rope_scaling": YARN}, 100, without={"rope_scaling": None}),
    Variant(
        "qwen3-window",
        "qwen3",
        QWEN_WINDOW | {"head_dim": 16, "max_window_layers": 1},
        without={"use_sliding_window": False},
        attends=True,
    ),
    Variant(
        "qwen3-layer-types",
        "qwen3",
        QWEN_WINDOW | {"head_dim": 16, "layer_types": ONE_LAYER_SLIDES},
        without={"layer_types": None},
    ),
    Variant("mistral", "mistral", {"sliding_window": None}),
    Variant(
        "mistral-window",
        "mistral",
        {"sliding_window": 15},
        without={"sliding_window": None},
        attends=True,
        reader={"sliding_window": 120},
    ),
    Variant(
        "mistral-defaults",
        "mistral",
        dict.fromkeys(("num_key_value_heads", "rms_norm_eps", "rope_theta"), LEFT_OUT) | {"num_attention_heads": 8},
    ),
    Variant(
        "mistral-layer-types",
        "mistral",
        {"sliding_window": 16, "num_hidden_layers": 3, "head_dim": 16, "layer_types": ONE_LAYER_SLIDES},
        without={"layer_types": ["full_attention"] * 3},
        attends=True,
    ),
    Variant("mistral-head-dim", "mistral", {"head_dim": 24, "sliding_window": None}),
    Variant("gemma2", "gemma2", GEMMA2, without={"attn_logit_softcapping": None}, reader=GEMMA2_READER, weights=beyond_one),
    Variant("gemma2-capped", "gemma2", GEMMA2, without={"final_logit_softcapping": None}, weights=beyond_one),
    Variant("gemma2-scaled", "gemma2", GEMMA2, without={"query_pre_attn_scalar": 24}, weights=beyond_one),
    Variant("gemma2-defaults", "gemma2", {"tie_word_embeddings": LEFT_OUT, "rope_theta": LEFT_OUT}, weights=beyond_one),
]
# Not published ones.
CAPPED = {"soft_cap": 3.0, "scale": 0.4}
ODD = [
    Variant("capped", "llama", attends=True, options=CAPPED),
    Variant("capped-window", "phi3", {"sliding_window": 15}, attends=True, options=CAPPED),
    Variant("scaled", "llama", attends=True, options={"scale": 0.4}),
]
VARIANT = {variant.name: variant for variant in VARIANTS + ODD}
PLAIN = [next(variant for variant in VARIANTS if variant.kind == kind) for kind in dict.fromkeys(v.kind for v in VARIANTS)]
ATTENDING = [variant for variant in VARIANTS + ODD if variant.attends or variant in PLAIN]


def rows(chosen: list[Variant]) -> pytest.MarkDecorator:
    """Parametrise a test's `variant` over these rows."""
    return pytest.mark.parametrize("variant", chosen, ids=str)


def variants(*names: str) -> pytest.MarkDecorator:
    """The same over the rows of these names, or over all published ones."""
    return rows([VARIANT[name] for name in names] if names else VARIANTS)


attending_variants = rows(ATTENDING)
plain_variants = rows(PLAIN)
kinds = pytest.mark.parametrize("kind", [variant.kind for variant in PLAIN])


def random_tokens(n: int, seed: int = 0) -> list[int]:
    return torch.randint(1, VOCABULARY, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int = 0, weights: Callable[[str, Tensor], Tensor] = usual_weights) -> None:
    """Random weights, the same for the same names and shapes."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.copy_(weights(name, torch.randn(parameter.shape, generator=generator, device="cpu")))


def tiny_model(variant: Variant, planned: int, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> CausalLM:
    """The variant's model with random weights, planned for a run of so many positions."""
    model = build_model(read_model_config(variant.full_config()))
    randomise(model, weights=variant.weights)
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
