"""What a model thinks aloud, in <think>…</think>, is no part of its reply."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


class ThoughtFilter:
    """A reply without its thoughts, while it is still coming. One that was not finished takes all that follows."""

    def __init__(self) -> None:
        self._held, self._inside = "", False

    def put(self, text: str) -> str:
        """What this adds to the reply. What may be the beginning of a tag is held until that is known."""
        self._held += text
        outside = ""
        while True:
            tag = CLOSE if self._inside else OPEN
            before, found, after = self._held.partition(tag)
            if not found:
                n_held = next((n for n in range(len(tag) - 1, 0, -1) if before.endswith(tag[:n])), 0)
                before, after = before[: len(before) - n_held], before[len(before) - n_held :]
            outside += "" if self._inside else before
            self._held = after
            if not found:
                return outside
            self._inside = not self._inside

    def flush(self) -> str:
        """What was held and turned out to be no tag."""
        return "" if self._inside else self._held


def without_thoughts(text: str) -> str:
    """A whole reply without its thoughts, stripped; where only the end of one stands there, it began with the reply."""
    whole = ThoughtFilter()
    return (whole.put(text) + whole.flush()).rpartition(CLOSE)[2].strip()
