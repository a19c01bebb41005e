"""The rotary embedding that a `config.json` asks for, in all its spellings."""

from __future__ import annotations

from typing import Any

from model.config import RopeConfig
from model.errors import InputError, shown
from weights.families import Family
from weights.values import Config, given_or, positive, whole

# What each type of rotary embedding needs, and what it may have.
ROPE_NUMBERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "llama3": (("factor", "low_freq_factor", "high_freq_factor"), ()),
    "yarn": (("factor",), ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")),
    "longrope": ((), ("factor", "attention_factor")),  # and short_factor and long_factor, a number for each frequency
}


def read_rope(config: Config, family: Family, head_dim: int, max_positions: int) -> RopeConfig:
    """`rope_scaling` (with `type` or `rope_type`, `rope_theta` beside it) or transformers 5's `rope_parameters`.

    Raises InputError for a type that the family does not have, and for numbers that are absent or make no sense.
    """
    spelling = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"  # of both the older one counts
    given = given_or(config.get(spelling), {})
    if not isinstance(given, dict) or any(isinstance(value, dict) for value in given.values()):
        raise InputError(
            f"config.json says {spelling} = {shown(given)}, which should be null or one object for all layers; "
            "take a checkpoint that is rotated alike in all layers."
        )

    def beside(key: str, default: Any) -> Any:
        """Some checkpoints write these beside the dictionary; inside it they count more."""
        return positive(key, given_or(given.get(key), given_or(config.get(key), default)))

    named = given_or(given.get("rope_type"), given_or(given.get("type"), "default"))
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
        of = "" if partial == 1 else f"partial_rotary_factor = {partial} of "
        raise InputError(
            f"config.json says {of}head_dim = {head_dim}, so {rotary_dim} channels are rotated; they should be an even "
            "number, at most head_dim."
        )

    key = "original_max_position_embeddings"
    inside = given_or(given.get(key), max_positions) if family.original_length is None else family.original_length
    original = whole(key, given_or(config.get(key), inside))  # beside the dictionary it counts more
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
            positive(key, given[key])
        elif key in needed:
            raise InputError(f"config.json asks for {rope_type!r} rotary embeddings but gives no {key}.")
    for key in ("short_factor", "long_factor") if rope_type == "longrope" else ():
        _check_factors(key, given.get(key), rotary_dim)
    # Swapped, they would keep the low frequencies and divide the high ones.
    swappable = {"llama3": (("low_freq_factor", 1), ("high_freq_factor", 4)), "yarn": (("beta_slow", 1), ("beta_fast", 32))}
    if rope_type in swappable:
        (low, low_default), (high, high_default) = swappable[rope_type]
        if given_or(given.get(low), low_default) > given_or(given.get(high), high_default):
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
        positive(f"a number of {key}", factor)
