"""Seconds and tokens of one question, by phase."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class Meter:
    """What has been counted so far. The phases are those of wim.events.Done."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter(document=0, margins=0, verdicts=0, final_prompt=0, answer=0)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the seconds of a `with` block."""
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start

    def steps(self, phase: str, steps: Iterable[Any]) -> Iterator[Any]:
        """Yield the same steps. Only the time that they take counts, not what the caller does with them."""
        steps = iter(steps)
        while True:
            with self.timed(phase):
                step = next(steps, None)
            if step is None:
                return
            yield step
