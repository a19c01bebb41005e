"""How a document is to be read: as a person asks, or else as the checkpoint wishes, or else by the defaults.

A checkpoint that wishes for something, as the demos do, has a file wim.json in its folder, of which any part may be absent:

    {"chunk_tokens": 256, "margin_tokens": 64, "prompts": {"margin": "…", "verdict": "…"}, "tasks": ["single_fact"]}
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model.errors import InputError
from weights.files import read_json
from wim.prompts import Prompts

PATTERNS = ("wim", "llm", "rag")
MARGINS = ("written", "underlined", "both")
WISHES = "wim.json"
TYPE_NAMES = {int: "a whole number", float: "a number", str: "a text"}
WISHED = ("chunk_tokens", "margin_tokens", "answer_tokens", "threshold", "margins", "underlines")  # of Settings


@dataclass(frozen=True)
class Settings:
    """How to read.

    pattern: `wim`; or one of those that the paper compares with: `llm` (the whole document, then the question) and `rag`
        (only the chunks judged relevant, then the question)
    chunk_tokens, margin_tokens, answer_tokens: the most tokens of a chunk, a margin and the answer
    margin_window: of how many chunks the margins are written together; 1 is the paper's loop, None is all
    margins: what notes are made of: `written`, the paper's margins; `underlined`, sentences that the model looks at
        (wim/underlines.py), which serves published checkpoints best (scripts/README.md); or `both`
    underlines: the most sentences that are underlined in a document
    pack: judge a margin in the forward pass that reads the next chunk (for a window of 1, by the model itself); the
        document's cache is then that of plain prefill to rounding instead of bit for bit
    keep_repeats: keep in the final prompt a sentence that an earlier margin already holds, even if this margin's chunk does
        not contain it (wim/notes.py)
    threshold: a margin (or a chunk, in `rag`) is relevant when the probability of YES against NO is at least this
    temperature, top_p, seed: see model.sampling.Sampler
    system: the system prompt, if any
    """

    pattern: str = "wim"
    chunk_tokens: int = 4096
    margin_tokens: int = 100
    answer_tokens: int = 100
    margin_window: int | None = 1
    margins: str = "underlined"
    underlines: int = 6
    pack: bool = False
    keep_repeats: bool = False
    threshold: float = 0.5
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    system: str | None = None

    def __post_init__(self) -> None:
        """Raises InputError for a value that makes no sense."""
        if self.pattern not in PATTERNS:
            raise InputError(f"The pattern {self.pattern!r} is unknown; choose one of: {', '.join(PATTERNS)}.")
        _check(self.margins in MARGINS, "margins", repr(self.margins), f"one of: {', '.join(MARGINS)}")
        for name in ("chunk_tokens", "margin_tokens", "answer_tokens", "underlines"):
            _check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _check(self.margin_window is None or self.margin_window >= 1, "margin_window", self.margin_window, "at least 1")
        _check(0 <= self.threshold <= 1, "threshold", self.threshold, "between 0 and 1")
        for name, option in (("pack", "--pack"), ("keep_repeats", "--keep-repeats")):
            _check(self.pattern == "wim" or not getattr(self, name), "pattern", self.pattern, f"wim with {option}")
        _check(self.margins != "underlined" or not self.pack, "margins", "underlined", "written or both with --pack")
        _check(not self.pack or self.margin_window == 1, "margin_window", self.margin_window or "all", "1 with --pack")
        _check(0 <= self.temperature < float("inf"), "temperature", self.temperature, "0 (greedy) or more")
        _check(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _check(0 <= self.seed < 2**63, "seed", self.seed, "at least 0 and below 2**63")


@dataclass(frozen=True)
class Wishes:
    """What a checkpoint wishes for.

    values: some of WISHED
    prompts: its own, and the project's where it has none
    tasks: the names of those to measure it with; none where it does not say
    """

    values: dict[str, int | float | str]
    prompts: Prompts
    tasks: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> Wishes:
        """Of a checkpoint's folder. Raises InputError for a file that is damaged, or asks for what there is not."""
        path = folder / WISHES
        values = read_json(path, optional=True)
        prompts = Prompts().changed(values.pop("prompts", {}), f"{path}, under 'prompts',")
        tasks = values.pop("tasks", [])
        if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
            raise InputError(f"{path} says tasks = {tasks!r}; give a list of their names.")
        for name, value in values.items():
            if name not in WISHED:
                raise InputError(f"{path} names {name!r}; it may name: {', '.join(WISHED)}, prompts, tasks.")
            kind = type(getattr(Settings, name))
            if isinstance(value, bool) or not isinstance(value, int | float if kind is float else kind):
                raise InputError(f"{path} says {name} = {value!r}; give {TYPE_NAMES[kind]}.")
        try:
            Settings(**values)
        except InputError as error:
            raise InputError(f"{path} cannot be used: {error}") from None
        return cls(values, prompts, tuple(tasks))

    def settings(self, **given: object) -> Settings:
        """Those that are given, then those of the checkpoint, then the defaults. Raises InputError as Settings does."""
        return Settings(**{**self.values, **given})


def _check(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise InputError(f"{name} is {value}; it should be {wanted}.")
