"""What a checkpoint wants that brings wishes of its own: the file wim.json in its folder, as the demos have it.

    {"chunk_tokens": 256, "margin_tokens": 64, "prompts": {"margin": "…", "verdict": "…"}}

Any of it may be absent, and the file too. What a person asks for wins over it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model.errors import InputError
from weights.files import read_json
from wim.prompts import Prompts
from wim.settings import Settings

FILE = "wim.json"
NUMBERS = ("chunk_tokens", "margin_tokens", "answer_tokens", "threshold")


@dataclass(frozen=True)
class Wishes:
    """numbers: some of NUMBERS, which are fields of Settings; prompts: its own, or the project's where it has none."""

    numbers: dict[str, int | float]
    prompts: Prompts

    @classmethod
    def of(cls, folder: Path) -> Wishes:
        """Of a checkpoint's folder. Raises InputError for a file that is damaged, or asks for what there is not."""
        path = folder / FILE
        numbers = read_json(path, optional=True)
        prompts = Prompts().changed(numbers.pop("prompts", {}), f"{path}, under 'prompts',")
        for name, value in numbers.items():
            if name not in NUMBERS:
                raise InputError(f"{path} names {name!r}; it may name: {', '.join(NUMBERS)}, prompts.")
            if isinstance(value, bool) or not isinstance(value, int | type(getattr(Settings, name))):
                raise InputError(f"{path} says {name} = {value!r}; give a number, whole for tokens.")
        try:
            Settings(**numbers)
        except InputError as error:
            raise InputError(f"{path} cannot be used: {error}") from None
        return cls(numbers, prompts)

    def settings(self, **given: object) -> Settings:
        """Those that are given, then those of the checkpoint, then the defaults. Raises InputError as Settings does."""
        return Settings(**{**self.numbers, **given})
