"""The numbers that define a model. `weights/config.py` reads them from a published `config.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WEIGHTS = ("float", "int8")  # what the matrices of the layers can be kept in; see model/int8.py


@dataclass(frozen=True)
class RopeConfig:
    """Rotary position embedding: which frequencies, and what is done to them for long contexts.

    rope_type: "default", "linear", "llama3", "yarn" or "longrope"
    theta: the base of the frequencies
    rotary_dim: how many of the `head_dim` channels are rotated (partial_rotary_factor * head_dim)
    original_max_position_embeddings: the length that the model was first trained for
    parameters: what else the type needs, as published (`factor`, `low_freq_factor`, `short_factor`, ...)
    """

    rope_type: str
    theta: float
    rotary_dim: int
    original_max_position_embeddings: int
    parameters: dict[str, Any]


@dataclass(frozen=True)
class ModelConfig:
    """The numbers that define a model; names are those of `config.json`.

    attention_bias, mlp_bias: of LLaMA's layers; the other families have theirs by definition
    context_length: how many positions the model is made for, which is not always max_position_embeddings
    sliding_windows: for each layer, how many positions a token attends to, itself included, or None for all of them
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    attention_bias: bool
    mlp_bias: bool
    sliding_windows: tuple[int | None, ...]
    rope: RopeConfig
    context_length: int
    dtype: str
