"""The numbers that define a model. `weights/config.py` reads them from a published `config.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

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
class AttentionOptions:
    """How the attention of a layer is special. A layer makes one of its configuration and hands it to `attend`.

    window: how many positions a query sees, its own included; None for all of them
    soft_cap: scores are kept within ±soft_cap (Gemma 2, arXiv 2408.00118, section 2); None for no cap
    scale: what queries times keys are multiplied by; None for head_dim ** -0.5
    """

    window: int | None = None
    soft_cap: float | None = None
    scale: float | None = None

    def scores(self, products: Tensor, head_dim: int) -> Tensor:
        """What the softmax is taken of. products: q k^T, of any shape"""
        return self.capped(products * (head_dim**-0.5 if self.scale is None else self.scale))

    def capped(self, scores: Tensor) -> Tensor:
        """The same scores, or soft_cap * tanh(scores / soft_cap)."""
        return scores if self.soft_cap is None else self.soft_cap * (scores / self.soft_cap).tanh()


PLAIN = AttentionOptions()


@dataclass(frozen=True)
class ModelConfig:
    """The numbers that define a model; names are those of `config.json`.

    attention_bias, mlp_bias: of LLaMA's layers; the other families have theirs by definition
    context_length: how many positions the model is made for, which is not always max_position_embeddings
    sliding_windows: for each layer, how many positions a token attends to, itself included, or None for all of them
    own: the numbers that only this family has, by their names in `config.json`; None for what the checkpoint is without
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
    own: dict[str, float | None] = field(default_factory=dict)
