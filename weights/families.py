"""What the checkpoints of each family may leave out of their `config.json`, and what they may say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from model.errors import InputError, shown
from weights.values import Config


def no_layer(layer: int, config: Config) -> bool:
    return False


def every_layer(layer: int, config: Config) -> bool:
    return True


def upper_layers(layer: int, config: Config) -> bool:
    """Those from `max_window_layers` on."""
    first = config.get("max_window_layers", 28)
    if not isinstance(first, int) or isinstance(first, bool):
        raise InputError(
            f"config.json says max_window_layers = {shown(first)}, which should be a whole number; correct it."
        )
    return layer >= first


@dataclass(frozen=True)
class Family:
    """What the checkpoints of a family may leave out, and what they may say. The defaults are transformers'.

    also_called: other names of the same family, `model_type` to architecture
    sizes: by key of config.json
    num_key_value_heads: None for as many as query heads
    head_dim: None for a query head's share of `hidden_size`
    activation_key: where the file names the activation
    activations: names of the function that the family is built with, its own first
    biases: the flags that say which layers have a bias; a family without them has the biases of its definition
    slides: whether a layer (counted from 0) attends through the window, where `layer_types` does not say it
    sliding_window: the window where the file says none; None for no window
    window_switch: the flag without which the window is not used
    lists_layers: `layer_types` counts
    original_length: `original_max_position_embeddings`, which stands beside the rotary embedding's own numbers; None for a
        family that has it among them and falls back on its maximum
    rope_types: the rotary embeddings it may have, each by the names that files give it
    partial: only a part of a head may be rotated
    own, optional: numbers that only this family has, with their defaults (ModelConfig.own); the optional ones may be null
    """

    architecture: str
    sizes: dict[str, int]
    also_called: dict[str, str] = field(default_factory=dict)
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    activation_key: str = "hidden_act"
    activations: tuple[str, ...] = ("silu", "swish")
    biases: tuple[str, ...] = ()
    slides: Callable[[int, Config], bool] = no_layer
    sliding_window: int | None = None
    window_switch: str | None = None
    lists_layers: bool = False
    original_length: int | None = None
    rope_types: dict[str, str] = field(
        default_factory=lambda: {name: name for name in ("default", "linear", "llama3", "yarn", "longrope")}
    )
    partial: bool = False
    own: dict[str, float] = field(default_factory=dict)
    optional: dict[str, float | None] = field(default_factory=dict)


LLAMA = Family(
    "LlamaForCausalLM",
    sizes={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
    },
    biases=("attention_bias", "mlp_bias"),
)
QWEN2 = replace(
    LLAMA,
    architecture="Qwen2ForCausalLM",
    sizes=LLAMA.sizes | {"vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768},
    biases=(),
    num_key_value_heads=32,
    slides=upper_layers,
    sliding_window=4096,
    window_switch="use_sliding_window",
    lists_layers=True,
)

FAMILIES = {
    # Each is a file of this name in model/.
    "llama": LLAMA,
    "phi3": Family(
        "Phi3ForCausalLM",
        sizes={
            "vocab_size": 32064,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "max_position_embeddings": 4096,
        },
        rms_norm_eps=1e-5,
        slides=every_layer,
        original_length=4096,
        # The early checkpoints called LongRoPE "su", and then "yarn".
        rope_types={"default": "default", "longrope": "longrope", "su": "longrope", "yarn": "longrope"},
        partial=True,
    ),
    "qwen2": QWEN2,
    "qwen3": replace(QWEN2, architecture="Qwen3ForCausalLM", head_dim=128, biases=("attention_bias",)),
    "mistral": replace(
        LLAMA,
        architecture="MistralForCausalLM",
        sizes=LLAMA.sizes | {"intermediate_size": 14336, "max_position_embeddings": 131072},
        biases=(),
        # transformers calls it so where `layer_types` says which layers slide, as in Ministral-8B-Instruct-2410.
        also_called={"ministral": "MinistralForCausalLM"},
        num_key_value_heads=8,
        slides=every_layer,
        sliding_window=4096,
        lists_layers=True,
    ),
    "gemma2": Family(
        "Gemma2ForCausalLM",
        sizes={
            "vocab_size": 256000,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "num_attention_heads": 8,
            "max_position_embeddings": 8192,
        },
        num_key_value_heads=4,
        head_dim=256,
        tie_word_embeddings=True,
        activation_key="hidden_activation",
        activations=("gelu_pytorch_tanh",),
        biases=("attention_bias",),
        slides=lambda layer, config: layer % 2 == 0,
        sliding_window=4096,
        lists_layers=True,
        own={"query_pre_attn_scalar": 256},
        optional={"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
}
