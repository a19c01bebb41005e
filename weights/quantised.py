"""Quantised checkpoints, told by their small files."""

from __future__ import annotations

from model.errors import InputError, shown
from weights.values import Config

# Where quantised checkpoints say that they are. `compression_config` and `quantization`: older compressed-tensors, and MLX.
QUANTISED = ("quantization_config", "compression_config", "quantization")
METHODS = ("quant_method", "quant_algo", "quantization", "bits", "load_in_4bit", "load_in_8bit")


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
