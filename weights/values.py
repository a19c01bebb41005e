"""Single values of a `config.json`, checked as they are read."""

from __future__ import annotations

from typing import Any

from model.errors import InputError, shown

Config = dict[str, Any]


def given_or(value: Any, default: Any) -> Any:
    """The default for what is absent or null. Zero and empty are neither."""
    return default if value is None else value


def flag(config: Config, key: str, default: bool = False) -> bool:
    """A flag of the file. Raises InputError for what is neither true nor false."""
    value = given_or(config.get(key), default)
    if not isinstance(value, bool):
        raise InputError(f"config.json says {key} = {shown(value)}, which should be true or false; correct it.")
    return value


def positive(key: str, value: Any, largest: float = 1e18, kinds: tuple[type, ...] = (int, float)) -> Any:
    """The value itself. Raises InputError where it is of another kind, or not from above 0 to `largest`.

    key: what it is called in the sentence
    """
    if not isinstance(value, kinds) or isinstance(value, bool) or not 0 < value <= largest:  # nor NaN, nor infinity
        kind = "" if float in kinds else " whole"
        limit = f" of at most {largest:,}" if isinstance(value, int) and value > largest else ""
        raise InputError(
            f"config.json says {key} = {shown(value)}, which should be a positive{kind} number{limit}; "
            "take the config.json that was published with the checkpoint."
        )
    return value


def whole(key: str, value: Any, largest: int = 10**18) -> int:
    """As `positive`, for whole numbers."""
    return positive(key, value, largest, (int,))
