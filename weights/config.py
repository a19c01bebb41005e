"""What a checkpoint's `config.json` says, in all its spellings, as a `ModelConfig`.

What a file leaves out has its family's default, from the table below; so a family that is not in the table is refused and
never read as another. The rest of this page is the same for all families.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from model.config import ModelConfig, RopeConfig
from model.errors import InputError, shown

Config = dict[str, Any]


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

    sizes: by key of config.json
    num_key_value_heads: None for as many as query heads
    head_dim: None for a query head's share of `hidden_size`
    biases: the flags that say which layers have a bias; a family without them has the biases of its definition
    slides: whether a layer (counted from 0) attends through the window, where `layer_types` does not say it
    sliding_window: the window where the file says none; None for no window
    window_switch: the flag without which the window is not used
    lists_layers: `layer_types` counts
    original_length: `original_max_position_embeddings`, which stands beside the rotary embedding's own numbers; None for a
        family that has it among them and falls back on its maximum
    rope_types: the rotary embeddings it may have, each by the names that files give it
    partial: only a part of a head may be rotated
    """

    architecture: str
    sizes: dict[str, int]
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False
    activations: tuple[str, ...] = ("silu", "swish")  # two names of one function
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


FAMILIES = {
    "llama": Family(
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
    ),
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
    "qwen2": Family(
        "Qwen2ForCausalLM",
        sizes={
            "vocab_size": 151936,
            "hidden_size": 4096,
            "intermediate_size": 22016,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "max_position_embeddings": 32768,
        },
        num_key_value_heads=32,
        slides=upper_layers,
        sliding_window=4096,
        window_switch="use_sliding_window",
        lists_layers=True,
    ),
}

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
# What each type of rotary embedding needs, and what it may have.
ROPE_NUMBERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ()),
    "yarn": (("factor",), ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")),
    "longrope": ((), ("factor", "attention_factor")),  # and short_factor and long_factor, a number for each frequency
}
LAYER_TYPES = ("full_attention", "sliding_attention")
# Where quantised checkpoints say that they are. `compression_config` and `quantization`: older compressed-tensors, and MLX.
QUANTISED = ("quantization_config", "compression_config", "quantization")
METHODS = ("quant_method", "quant_algo", "quantization", "bits", "load_in_4bit", "load_in_8bit")
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

    activation = config.get("hidden_act", family.activations[0])
    if activation not in family.activations:
        raise InputError(
            f"config.json asks for hidden_act {shown(activation)}; {model_type} is built with {family.activations[0]!r}."
        )
    # Null is no size; elsewhere it is as good as absent.
    sizes = {key: _whole(key, config.get(key, default), LARGEST[key]) for key, default in family.sizes.items()}
    heads, n_layers = sizes["num_attention_heads"], sizes["num_hidden_layers"]

    def heads_size(key: str, default: int | None, otherwise: int) -> int:
        value = config.get(key, default)
        return _whole(key, otherwise if value is None else value, LARGEST[key])

    kv_heads = heads_size("num_key_value_heads", family.num_key_value_heads, heads)
    head_dim = heads_size("head_dim", family.head_dim, sizes["hidden_size"] // heads)
    if heads % kv_heads:
        raise InputError(
            f"config.json says num_attention_heads = {heads} and num_key_value_heads = {kv_heads}; "
            "the first must be a multiple of the second."
        )
    rope = _rope(config, family, head_dim, sizes["max_position_embeddings"])
    context_length = _context_length(config, rope, sizes["max_position_embeddings"], model_max_length)
    biases = {flag: flag in family.biases and _flag(config, flag) for flag in ("attention_bias", "mlp_bias")}
    return ModelConfig(
        model_type=model_type,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=_positive("rms_norm_eps", _or(config.get("rms_norm_eps"), family.rms_norm_eps)),
        tie_word_embeddings=_flag(config, "tie_word_embeddings", family.tie_word_embeddings),
        sliding_windows=_sliding_windows(config, family, n_layers, context_length),
        rope=rope,
        context_length=context_length,
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"),
        **sizes,
        **biases,
    )


def refuse_quantised(config: Config, file: str = "config.json") -> None:
    """Raises InputError where a configuration says that the weights are quantised.

    Also where they turn out to be floats: transformers would quantise those when it loads them, so what is published is the
    quantised model.
    """
    for key in QUANTISED if file == "config.json" else (None,):
        said = config.get(key) if key else config
        if not said or (isinstance(said, dict) and _leaves_floats(said)):  # both are no quantisation to transformers either
            continue
        hints = said if isinstance(said, dict) else {"": said}
        how = next(
            (f" ({name + ': ' if name else ''}{shown(hints[name])})" for name in ("", *METHODS) if hints.get(name)), ""
        )
        raise InputError(
            f"The weights are quantised, as {key + ' of ' if key else ''}{file} says{how}, and only float weights are "
            "supported; take the checkpoint that they were made from."
        )


def _leaves_floats(section: Config) -> bool:
    """Whether a section of bitsandbytes asks for neither 4 nor 8 bits."""
    return section.get("quant_method") == "bitsandbytes" and not (
        section.get("load_in_4bit") or section.get("load_in_8bit")
    )


# Single values


def _or(value: Any, default: Any) -> Any:
    """The default for what is absent or null. Zero and empty are neither."""
    return default if value is None else value


def _flag(config: Config, key: str, default: bool = False) -> bool:
    value = _or(config.get(key), default)
    if not isinstance(value, bool):
        raise InputError(f"config.json says {key} = {shown(value)}, which should be true or false; correct it.")
    return value


def _positive(key: str, value: Any, largest: float = 1e18, kinds: tuple[type, ...] = (int, float)) -> Any:
    if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value <= largest:  # nor NaN, nor infinity
        whole = "" if float in kinds else " whole"
        limit = f" of at most {largest:,}" if isinstance(value, int) and value > largest else ""
        raise InputError(
            f"config.json says {key} = {shown(value)}, which should be a positive{whole} number{limit}; "
            "take the config.json that was published with the checkpoint."
        )
    return value


def _whole(key: str, value: Any, largest: int = 10**18) -> int:
    return _positive(key, value, largest, (int,))


# What the values mean


def _model_type(config: Config) -> str:
    names, model_type = _or(config.get("architectures"), []), config.get("model_type")
    if not isinstance(names, list):
        raise InputError(f"config.json says architectures = {shown(names)}, which should be a list; correct it.")
    for found, family in FAMILIES.items():
        if family.architecture in names:
            if model_type not in (None, found):
                raise InputError(
                    f"config.json says architectures = {shown(names)} and model_type = {shown(model_type)}, which do not "
                    "agree; take the config.json that was published with the checkpoint."
                )
            return found
    if not names and isinstance(model_type, str) and model_type in FAMILIES:
        return model_type
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
        length = min(length, _whole(f"{key} of dual_chunk_attention_config", original))
    return length


def _sliding_windows(config: Config, family: Family, n_layers: int, context_length: int) -> tuple[int | None, ...]:
    """For each layer its window, or None."""
    window = config.get("sliding_window", family.sliding_window)
    if family.slides is no_layer or (family.window_switch and not _flag(config, family.window_switch)):
        window = None
    if window is not None:
        _whole("sliding_window", window)
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


def _rope(config: Config, family: Family, head_dim: int, max_positions: int) -> RopeConfig:
    """`rope_scaling` (with `type` or `rope_type`, `rope_theta` beside it) or transformers 5's `rope_parameters`."""
    spelling = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"  # of both the older one counts
    given = _or(config.get(spelling), {})
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise InputError(
            f"config.json says {spelling} = {shown(given)}, which should be null or one object for all layers; "
            "take a checkpoint that is rotated alike in all layers."
        )

    def beside(key: str, default: Any) -> Any:
        """Some checkpoints write these beside the dictionary; inside it they count more."""
        return _positive(key, _or(given.get(key), _or(config.get(key), default)))

    named = _or(given.get("rope_type"), _or(given.get("type"), "default"))
    rope_type = family.rope_types.get(named) if isinstance(named, str) else None
    if rope_type is None:
        raise InputError(
            f"The rotary embedding type {shown(named)} is not supported; supported: {', '.join(family.rope_types)}."
        )
    theta, partial = beside("rope_theta", family.rope_theta), beside("partial_rotary_factor", 1.0)
    if partial != 1 and not family.partial:
        raise InputError(
            f"config.json says partial_rotary_factor = {partial}, which {family.architecture} does not have; remove it."
        )
    rotary_dim = int(head_dim * partial)
    if not 0 < rotary_dim <= head_dim or rotary_dim % 2:
        raise InputError(
            f"config.json says partial_rotary_factor = {partial} of head_dim = {head_dim}; the product should be an even "
            "number, at most head_dim."
        )

    key = "original_max_position_embeddings"
    inside = _or(given.get(key), max_positions) if family.original_length is None else family.original_length
    original = _whole(key, _or(config.get(key), inside))  # beside the dictionary it counts more
    if min(theta, original) <= 1:
        raise InputError(
            f"config.json says rope_theta = {theta} and an original length of {original}; both should be above 1."
        )
    parameters = {name: value for name, value in given.items() if name not in ("type", "rope_type", "rope_theta", key)}
    parameters.pop("partial_rotary_factor", None)
    # Without a factor LongRoPE's scale is the ratio of the two lengths; `factor` stands for it in transformers 5.
    if rope_type == "longrope" and parameters.get("factor") is None:
        parameters["factor"] = max_positions / original
    _check_rope_numbers(rope_type, parameters, rotary_dim)
    return RopeConfig(rope_type, float(theta), rotary_dim, original, parameters)


def _check_rope_numbers(rope_type: str, given: dict[str, Any], rotary_dim: int) -> None:
    needed, optional = ROPE_NUMBERS[rope_type]
    for key in (*needed, *optional):
        if given.get(key) is not None:
            _positive(key, given[key])
        elif key in needed:
            raise InputError(f"config.json asks for {rope_type!r} rotary embeddings but gives no {key}.")
    for key in ("short_factor", "long_factor") if rope_type == "longrope" else ():
        _check_factors(key, given.get(key), rotary_dim)
    # Swapped, they would keep the low frequencies and divide the high ones.
    swappable = {"llama3": (("low_freq_factor", 1), ("high_freq_factor", 4)), "yarn": (("beta_slow", 1), ("beta_fast", 32))}
    if rope_type in swappable:
        (low, low_default), (high, high_default) = swappable[rope_type]
        if _or(given.get(low), low_default) > _or(given.get(high), high_default):
            raise InputError(
                f"config.json says {low} = {given.get(low, low_default)} and {high} = {given.get(high, high_default)}; the "
                "first should be the smaller, perhaps they are swapped."
            )


def _check_factors(key: str, factors: Any, rotary_dim: int) -> None:
    if factors is None:
        raise InputError(f"config.json asks for 'longrope' rotary embeddings but gives no {key}.")
    if not isinstance(factors, list) or len(factors) != rotary_dim // 2:
        found = f"{len(factors)} numbers" if isinstance(factors, list) else shown(factors)
        raise InputError(f"config.json's {key} has {found}; a rotary dimension of {rotary_dim} needs {rotary_dim // 2}.")
    for factor in factors:
        _positive(f"a number of {key}", factor)
