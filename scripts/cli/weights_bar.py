"""How far the loading of weights is, on stderr."""

from __future__ import annotations

import sys

from tqdm import tqdm

from cli.start import clear


class WeightsBar:
    """A bar in bytes for `Checkpoint.load_model(progress=...)`. One serves several models, one after the other."""

    def __init__(self):
        self.bar: tqdm | None = None

    @classmethod
    def on_terminal(cls) -> WeightsBar | None:
        """None where stderr goes to a file or a pipe, which would keep every state of the bar."""
        return cls() if sys.stderr.isatty() else None

    def __call__(self, read: int, total: int) -> None:
        if self.bar is None:
            clear()
            # One that Ctrl-C ends is not drawn again, below the last words.
            shown = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "file": sys.stderr, "leave": False}
            self.bar = tqdm(total=total, desc="weights", **shown)
        self.bar.update(read - self.bar.n)
        if read == total:
            self.bar.leave = True
            self.bar.close()
            self.bar = None
