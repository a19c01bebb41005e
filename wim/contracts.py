"""What the loop asks of those who bring a model: a session, a tokenizer and a chat format. None of it is of one library.

`model.session.Session`, `weights.Tokenizer` and `weights.ChatFormat` are one way to keep these contracts. Another session,
over a transformers model and its cache, is scripts/transformers_session.py; the tests hold the two to the same events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from model.errors import InputError
from wim.settings import Settings


class Session(Protocol):
    """A model with one cache of what it has read.

    Every verb reads tokens after what has been read. After `rollback(n)` the next token must be computed as if nothing had
    been read after the first n. For a causal cache that is to forget a suffix. But a layer with a sliding window may not
    have dropped the keys that left its window while the suffix was read, for they are in the window again: keep them all,
    as KVCache does, or refuse such models.
    """

    @property
    def length(self) -> int:
        """How many positions have been read."""
        ...

    def prefill(self, token_ids: Sequence[int]) -> object:
        """Read tokens, at least one; they stay. What is returned is not looked at."""
        ...

    def generate(
        self, prompt: Sequence[int], max_tokens: int, stop_ids: frozenset[int], sampler: Callable[[Any], Any]
    ) -> Iterator[int]:
        """Read a prompt, then yield token ids until a stop id (which is not yielded) or `max_tokens`.

        The prompt and the tokens stay, but the last of `max_tokens` need not; the loop rolls back. The caller may leave
        midway. sampler: from logits (rows, vocab_size) to token ids (rows,), see model/sampling.py
        """
        ...

    def probability(self, prompts: Sequence[Sequence[int]], yes_ids: Sequence[int], no_ids: Sequence[int]) -> list[float]:
        """After each prompt, the probability that the next token is one of `yes_ids` rather than of `no_ids`.

        Each prompt comes right after what has been read, none sees another, and none stays. Wanted where something is
        judged: verdicts, and the pattern rag.
        """
        ...

    def rollback(self, length: int) -> None:
        """Forget all but the first `length` positions."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has done what it was asked for; for clocks."""
        ...


class FullSession(Session, Protocol):
    """What a session may be without. `check_session` says what then cannot be chosen, before anything is read.

    One without `branch` reads the document anew for each further question that margins are written on: a margin on a chunk
    that others follow is a branch.
    """

    model: object  # sessions of the same model may share forward passes

    def branch(
        self,
        ends: Sequence[int],
        prompts: Sequence[Sequence[int]],
        max_tokens: int,
        stop_ids: frozenset[int],
        sampler: Callable[[Any], Any],
    ) -> Iterator[list[int | None]]:
        """Continue prompt r as if only the first ends[r] positions had been read; what has been read does not change.

        Yields, for each step, the next token of each prompt, or None for those that have ended.
        """
        ...

    def attention(
        self,
        ends: Sequence[int],
        question: tuple[Sequence[int], range],
        empty: tuple[Sequence[int], range],
        borders: Sequence[Sequence[int]],
    ) -> list[list[float]]:
        """How much more a question makes the model look at spans of the cache than an empty one; see model/session.py."""
        ...

    def prefill_and_probability(
        self, token_ids: Sequence[int], other: Session, prompt: Sequence[int], yes_ids: Sequence[int], no_ids: Sequence[int]
    ) -> float:
        """`prefill` here and `probability` with one prompt on another session of the same model."""
        ...


def check_session(session: Session, settings: Settings, pattern: str, together: int) -> None:
    """Raises InputError where a session cannot do what the settings ask for.

    together: of how many chunks margins are written together
    """
    written = pattern == "wim" and settings.margins != "underlined"
    underlined = pattern == "wim" and settings.margins != "written"
    for verb, wanted, what, instead in (
        ("attention", underlined, "underlined margins", "take margins='written'"),
        ("branch", written and together > 1, f"margins of {together} chunks together", "take margin_window=1"),
        ("prefill_and_probability", written and settings.pack, "packed verdicts", "take pack=False"),
    ):
        if wanted and not hasattr(session, verb):
            raise InputError(f"A {type(session).__name__} has no `{verb}`, which {what} need; {instead}.")


class Tokenizer(Protocol):
    """Text to ids and back. Text is data: no text may give a control token, whatever it says.

    after: None for text that continues other text, else the ids before it; vocabularies that put a space before the first
        word of a prompt need it
    """

    def encode(self, text: str, *, after: Sequence[int] | None = None) -> list[int]:
        """No BOS, no EOS."""
        ...

    def encode_with_offsets(
        self, text: str, *, after: Sequence[int] | None = None
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """And for each id the characters [start, end) that it stands for; in order, and together all of the text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids."""
        ...

    def stream(self) -> Stream:
        """Decode ids as they come."""
        ...


class Stream(Protocol):
    """Ids that come one by one, as text: the pieces, joined, are the text of them all."""

    def put(self, token_id: int) -> str:
        """The text that is complete with this id, perhaps none."""
        ...

    def flush(self) -> str:
        """What is left at the end."""
        ...


class ChatFormat(Protocol):
    """stop_ids: ids that end a reply"""

    stop_ids: frozenset[int]

    def prompt_pieces(self, system: str | None) -> tuple[list[int], str, list[int]]:
        """Ids before the user's text, spaces right before it, and the ids after it, behind which the model replies.

        The ids before begin with a BOS, once, if the model wants one. Raises InputError for a system prompt that the format
        does not take.
        """
        ...

    def reply_starts(self, *choices: Sequence[str]) -> tuple[list[int], list[set[int]]]:
        """Ids to read before a reply, mostly none, and for each choice of words the ids that can begin it."""
        ...


class Source(Protocol):
    """What a plan is made of (wim/budget.py). A `weights.Checkpoint` is one.

    name: in sentences
    folder: tells whether two are the same; `wim.json` there may hold wishes, see wim/settings.py
    config: of it `context_length` counts, the positions that the model is made for
    """

    name: str
    folder: Any
    config: Any
    tokenizer: Tokenizer
    chat: ChatFormat
