"""What a checkpoint's `config.json` says, read once and checked.

The rest of `model/` sees only `ModelConfig`: every spelling that is in use on the hub (the `rope_scaling` dictionary with
`type` or `rope_type` beside a top-level `rope_theta`, and the `rope_parameters` of transformers 5) ends here.
"""

from __future__ import annotations

from typing import Any

from model.config import ModelConfig, RopeConfig, context_length
from model.errors import InputError

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "Phi3ForCausalLM": "phi3",
    "Qwen2ForCausalLM": "qwen2",
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
NUMBERS = (int, float)
SUPPORTED = ", ".join(f"{model_type} ({name})" for name, model_type in ARCHITECTURES.items())


def read_model_config(config: dict[str, Any]) -> ModelConfig:
    """Read a published `config.json`.

    Raises InputError when the architecture or one of its options is not supported, or a number is missing.
    """
    model_type = _model_type(config)

    def number(key: str, default: Any = None, kinds: tuple[type, ...] = (int,)) -> Any:
        value = config.get(key)
        return _positive(key, default if value is None else value, kinds)

    activation = config.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise InputError(f"config.json asks for hidden_act {activation!r}; the models here are built with 'silu'.")
    heads = number("num_attention_heads")
    kv_heads = number("num_key_value_heads", heads)
    head_dim = number("head_dim", number("hidden_size") // heads)
    if heads % kv_heads:
        raise InputError(
            f"config.json says num_attention_heads = {heads} and num_key_value_heads = {kv_heads}; "
            "the first must be a multiple of the second."
        )
    rope = _rope(config, model_type, head_dim, number("max_position_embeddings"))
    stretched = context_length(rope, number("max_position_embeddings"))
    return ModelConfig(
        model_type=model_type,
        vocab_size=number("vocab_size"),
        hidden_size=number("hidden_size"),
        intermediate_size=number("intermediate_size"),
        num_hidden_layers=number("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=number("rms_norm_eps", 1e-5 if model_type == "phi3" else 1e-6, NUMBERS),
        max_position_embeddings=number("max_position_embeddings"),
        tie_word_embeddings=_flag(config, "tie_word_embeddings"),
        attention_bias=_flag(config, "attention_bias"),
        mlp_bias=_flag(config, "mlp_bias"),
        sliding_windows=_sliding_windows(config, model_type, number("num_hidden_layers"), stretched),
        rope=rope,
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "bfloat16"),
    )


def _flag(config: dict[str, Any], key: str) -> bool:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise InputError(f"config.json says {key} = {value!r}, which should be true or false; correct it.")
    return bool(value)


def _positive(key: str, value: Any, kinds: tuple[type, ...]) -> Any:
    if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value < 1e18:  # nor NaN, nor infinity
        whole = "" if float in kinds else " whole"
        raise InputError(
            f"config.json says {key} = {value!r}, which should be a positive{whole} number; "
            "take the config.json that was published with the checkpoint."
        )
    return value


def _model_type(config: dict[str, Any]) -> str:
    names, model_type = config.get("architectures") or [], config.get("model_type")
    if not isinstance(names, list):
        raise InputError(f"config.json says architectures = {names!r}, which should be a list; correct it.")
    for name in names:
        if isinstance(name, str) and name in ARCHITECTURES:
            if model_type not in (None, ARCHITECTURES[name]):
                raise InputError(
                    f"config.json says architectures = {names} and model_type = {model_type!r}, which do not agree; "
                    "take the config.json that was published with the checkpoint."
                )
            return ARCHITECTURES[name]
    if not names and model_type in ARCHITECTURES.values():
        return model_type
    found = ", ".join(map(str, names)) or model_type
    raise InputError(f"The architecture {found!r} is not supported; choose a checkpoint of one of: {SUPPORTED}.")


def _sliding_windows(config: dict[str, Any], model_type: str, n_layers: int, context_length: int) -> tuple[int | None, ...]:
    window = config.get("sliding_window", 4096 if model_type == "qwen2" else None)
    layer_types = None
    if model_type == "llama":
        window = None
    elif model_type == "qwen2":
        window = window if _flag(config, "use_sliding_window") else None
        # Qwen2's window begins above the first `max_window_layers` layers; transformers 5 writes it out layer by layer.
        first = config.get("max_window_layers", 28)
        if not isinstance(first, int) or isinstance(first, bool):
            raise InputError(f"config.json says max_window_layers = {first!r}, which should be a whole number; correct it.")
        layer_types = config.get("layer_types") or [
            "sliding_attention" if i >= first else "full_attention" for i in range(n_layers)
        ]
    if window is None or _positive("sliding_window", window, (int,)) >= context_length:
        return (None,) * n_layers  # Phi-3-mini-128k's window spans twice its context
    if layer_types is None:
        return (window,) * n_layers
    if not isinstance(layer_types, list) or len(layer_types) != n_layers:
        listed = len(layer_types) if isinstance(layer_types, list) else repr(layer_types)
        raise InputError(f"config.json lists {listed} layer_types for {n_layers} layers; the two must agree.")
    for kind in layer_types:
        if kind not in LAYER_TYPES:
            raise InputError(f"config.json has a layer of type {kind!r}; supported: {', '.join(LAYER_TYPES)}.")
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def _rope(config: dict[str, Any], model_type: str, head_dim: int, max_positions: int) -> RopeConfig:
    spelling = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"  # of both the older one counts
    given = config.get(spelling) or {}
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise InputError(
            f"config.json says {spelling} = {given!r}, which should be null or one object for all layers; "
            "take a checkpoint that is rotated alike in all layers."
        )
    given = dict(given)
    rope_type = given.pop("rope_type", None) or given.pop("type", None) or "default"
    given.pop("type", None)
    if model_type == "phi3" and rope_type in ("su", "yarn"):
        rope_type = "longrope"  # the names that early Phi-3 checkpoints gave to LongRoPE
    if not isinstance(rope_type, str) or rope_type not in ROPE_NUMBERS:
        raise InputError(f"The rotary embedding type {rope_type!r} is not supported; supported: {', '.join(ROPE_NUMBERS)}.")

    def number(key: str, default: Any, kinds: tuple[type, ...] = NUMBERS) -> Any:
        """Some checkpoints write these beside the dictionary."""
        return _positive(key, given.pop(key, None) or config.get(key) or default, kinds)

    theta, partial = number("rope_theta", 10000.0), number("partial_rotary_factor", 1.0)
    if partial != 1 and model_type != "phi3":
        raise InputError(
            f"config.json says partial_rotary_factor = {partial}, which {model_type} does not have; remove it."
        )
    # Here what stands beside the dictionary wins. 4096: the default of Phi-3's published code, which knows no other place
    key, inner = "original_max_position_embeddings", given.pop("original_max_position_embeddings", None)
    original = config.get(key) or (4096 if model_type == "phi3" else inner or max_positions)
    _positive(key, original, (int,))
    rotary_dim = int(head_dim * partial)
    if rotary_dim > head_dim or rotary_dim % 2:
        raise InputError(
            f"config.json says partial_rotary_factor = {partial} of head_dim = {head_dim}; the product should be an even "
            "number, at most head_dim."
        )
    # Phi-3 has always taken LongRoPE's scale from the two lengths; `factor` stands for it in transformers 5.
    if rope_type == "longrope" and given.get("factor") is None:
        given["factor"] = max_positions / original

    needed, optional = ROPE_NUMBERS[rope_type]
    for key in (*needed, *optional):
        if given.get(key) is not None:
            _positive(key, given[key], NUMBERS)
        elif key in needed:
            raise InputError(f"config.json asks for {rope_type!r} rotary embeddings but gives no {key}.")
    for key in ("short_factor", "long_factor") if rope_type == "longrope" else ():
        _check_factors(key, given.get(key), rotary_dim)
    if min(theta, original) <= 1:
        raise InputError(
            f"config.json says rope_theta = {theta} and an original length of {original}; both should be above 1."
        )
    return RopeConfig(rope_type, float(theta), rotary_dim, original, given)


def _check_factors(key: str, factors: Any, rotary_dim: int) -> None:
    if factors is None:
        raise InputError(f"config.json asks for 'longrope' rotary embeddings but gives no {key}.")
    if not isinstance(factors, list) or len(factors) != rotary_dim // 2:
        found = f"{len(factors)} numbers" if isinstance(factors, list) else repr(factors)
        raise InputError(f"config.json's {key} has {found}; a rotary dimension of {rotary_dim} needs {rotary_dim // 2}.")
    for factor in factors:
        _positive(f"a number of {key}", factor, NUMBERS)
