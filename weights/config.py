"""What a checkpoint's `config.json` says, in all its spellings, as a `ModelConfig`.

What a file leaves out has its family's default, from the table in families.py; so a family that is not in the table is
refused and never read as another. The rest is the same for all families.
"""

from __future__ import annotations

from typing import Any

from model.config import ModelConfig, RopeConfig
from model.errors import InputError, shown
from weights.families import FAMILIES, Family, no_layer
from weights.quantised import refuse_quantised
from weights.rope import read_rope
from weights.values import Config, flag, given_or, positive, whole

# Sizes far beyond any published model. What is within them overflows nothing, and is held against the memory by arithmetic.
LARGEST = {
    "vocab_size": 10**8,
    "hidden_size": 10**6,
    "intermediate_size": 10**7,
    "num_hidden_layers": 1000,
    "num_attention_heads": 10**4,
    "num_key_value_heads": 10**4,
    "head_dim": 10**4,
    "max_position_embeddings": 10**9,
}
# By `model_type`: the family's name here, and what stands under `architectures`.
TYPES = {
    called: (name, architecture)
    for name, family in FAMILIES.items()
    for called, architecture in {name: family.architecture, **family.also_called}.items()
}
LAYER_TYPES = ("full_attention", "sliding_attention")
SUPPORTED = ", ".join(f"{name} ({family.architecture})" for name, family in FAMILIES.items())


def read_model_config(config: Config, model_max_length: object = None) -> ModelConfig:
    """Read a published `config.json`.

    model_max_length: what tokenizer_config.json says under this name; see `_context_length`
    Raises InputError when the family or one of its options is not supported, a value is not usable, or the weights are
    quantised. Takes no time and no memory to speak of, whatever the numbers are.
    """
    model_type = _model_type(config)
    family = FAMILIES[model_type]
    refuse_quantised(config)

    activation = config.get(family.activation_key, family.activations[0])
    if activation not in family.activations:
        raise InputError(
            f"config.json asks for {family.activation_key} {shown(activation)}; {model_type} is built with "
            f"{family.activations[0]!r}."
        )
    # Null is no size; elsewhere it is as good as absent.
    sizes = {key: whole(key, config.get(key, default), LARGEST[key]) for key, default in family.sizes.items()}
    heads, n_layers = sizes["num_attention_heads"], sizes["num_hidden_layers"]

    def heads_size(key: str, default: int | None, otherwise: int) -> int:
        value = config.get(key, default)
        return whole(key, otherwise if value is None else value, LARGEST[key])

    kv_heads = heads_size("num_key_value_heads", family.num_key_value_heads, heads)
    head_dim = heads_size("head_dim", family.head_dim, sizes["hidden_size"] // heads)
    if heads % kv_heads:
        raise InputError(
            f"config.json says num_attention_heads = {heads} and num_key_value_heads = {kv_heads}; "
            "the first must be a multiple of the second."
        )
    rope = read_rope(config, family, head_dim, sizes["max_position_embeddings"])
    context_length = _context_length(config, rope, sizes["max_position_embeddings"], model_max_length)
    own = {key: positive(key, config.get(key, default)) for key, default in family.own.items()}
    for key, default in family.optional.items():
        value = config.get(key, default)
        own[key] = None if value is None else positive(key, value)
    biases = {key: key in family.biases and flag(config, key) for key in ("attention_bias", "mlp_bias")}
    return ModelConfig(
        model_type=model_type,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=positive("rms_norm_eps", given_or(config.get("rms_norm_eps"), family.rms_norm_eps)),
        tie_word_embeddings=flag(config, "tie_word_embeddings", family.tie_word_embeddings),
        sliding_windows=_sliding_windows(config, family, n_layers, context_length),
        rope=rope,
        context_length=context_length,
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"),
        own=own,
        **sizes,
        **biases,
    )


def _model_type(config: Config) -> str:
    names, model_type = given_or(config.get("architectures"), []), config.get("model_type")
    if not isinstance(names, list):
        raise InputError(f"config.json says architectures = {shown(names)}, which should be a list; correct it.")
    said = TYPES.get(model_type, (None,))[0] if isinstance(model_type, str) else None
    for found, architecture in TYPES.values():
        if architecture in names:
            if model_type is not None and said != found:
                raise InputError(
                    f"config.json says architectures = {shown(names)} and model_type = {shown(model_type)}, which do not "
                    "agree; take the config.json that was published with the checkpoint."
                )
            return found
    if not names and said is not None:
        return said
    named = names[0] if names else model_type
    raise InputError(f"The architecture {shown(named)} is not supported; choose a checkpoint of one of: {SUPPORTED}.")


def _context_length(config: Config, rope: RopeConfig, max_positions: int, model_max_length: object) -> int:
    """How many positions the model is made for.

    For most checkpoints `max_position_embeddings` says it, and transformers has no other limit. But:
    - YaRN: Qwen2 and Qwen2.5 keep the unstretched maximum there (32,768), others write the stretched one.
    - Linear: LLaMA-2-7B-32K and DeepSeek-Coder write the stretched maximum, Vicuna-16k and LongChat the unstretched one,
      with the stretched one as `max_sequence_length` and as the tokenizer's `model_max_length`. So a longer length counts
      where the checkpoint says it; the factor alone would stretch the first two twice. Tokenizers that know no maximum
      say 10^30, which is more than the factor gives, and does not count.
    - Dual chunk attention: the 1M models of Qwen2.5 write 1,010,000, which they reach by attending in pieces. transformers
      does not do that, nor does this code; without it, their authors say, they are good for 262,144.
    """
    length = max_positions
    if rope.rope_type == "yarn":
        length = max(length, int(rope.original_max_position_embeddings * rope.parameters["factor"]))
    elif rope.rope_type == "linear":
        stretched = max_positions * rope.parameters["factor"]
        for said in (config.get("max_sequence_length"), model_max_length):
            if isinstance(said, int) and not isinstance(said, bool) and length < said <= stretched:
                length = said
    dual = config.get("dual_chunk_attention_config")
    if dual:
        key = "original_max_position_embeddings"
        original = dual.get(key, dual.get("chunk_size")) if isinstance(dual, dict) else dual
        length = min(length, whole(f"{key} of dual_chunk_attention_config", original))
    return length


def _sliding_windows(config: Config, family: Family, n_layers: int, context_length: int) -> tuple[int | None, ...]:
    """For each layer its window, or None."""
    window = config.get("sliding_window", family.sliding_window)
    if family.slides is no_layer or (family.window_switch and not flag(config, family.window_switch)):
        window = None
    if window is not None:
        whole("sliding_window", window)
    kinds = config.get("layer_types") if family.lists_layers else None
    if kinds is None:
        slides = [window is not None and family.slides(layer, config) for layer in range(n_layers)]
    else:
        slides = _listed(kinds, n_layers)
        if any(slides) and window is None:
            raise InputError(
                "config.json has layer_types with 'sliding_attention' but uses no sliding_window; take the config.json "
                "that was published with the checkpoint."
            )
    if not any(slides):
        return (None,) * n_layers
    # One as long as the context is none: Phi-3-mini-128k's spans twice its context.
    window = window if window < context_length else None
    return tuple(window if slide else None for slide in slides)


def _listed(kinds: Any, n_layers: int) -> list[bool]:
    """Whether each layer slides, from `layer_types`."""
    if not isinstance(kinds, list) or len(kinds) != n_layers:
        listed = len(kinds) if isinstance(kinds, list) else shown(kinds)
        raise InputError(f"config.json lists {listed} layer_types for {n_layers} layers; the two must agree.")
    for kind in kinds:
        if kind not in LAYER_TYPES:
            raise InputError(f"config.json has a layer of type {shown(kind)}; supported: {', '.join(LAYER_TYPES)}.")
    return [kind == "sliding_attention" for kind in kinds]
