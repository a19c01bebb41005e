"""A document of random tokens, with the project's own prompts about it."""

from __future__ import annotations

import re
from types import SimpleNamespace

import torch

from model import InputError, ModelConfig
from wim.budget import Plan, make_plan
from wim.chunks import Chunk, Sentence
from wim.prompts import Prompts
from wim.settings import Settings

SENTENCE_TOKENS = 25
QUERY = "Which of the people in the story went to the market, and what did they buy there?"


class NumberTokenizer:
    """Stands in for a tokenizer when weights are random: a token's text is its number, so every token survives as text.

    Any other word becomes one token, so that the prompts have about the length that they have in English.
    """

    bos_id = None

    def __init__(self, vocab_size: int):
        self.vocab_size = vocab_size

    def encode(self, text: str, after: object = None) -> list[int]:
        return [int(word) if word.isdigit() else sum(word.encode()) % self.vocab_size for word in text.split()]

    def encode_with_offsets(self, text: str, after: object = None) -> tuple[list[int], list[tuple[int, int]]]:
        return self.encode(text), [word.span() for word in re.finditer(r"\S+", text)]

    def decode(self, token_ids: list[int]) -> str:
        return "".join(f"{token_id} " for token_id in token_ids)

    def stream(self) -> SimpleNamespace:
        return SimpleNamespace(put=lambda token_id: f"{token_id} ", flush=lambda: "")


def random_plan(config: ModelConfig, settings: Settings, n_tokens: int) -> Plan:
    """Random tokens in chunks, and the project's own prompts. Raises InputError for what a context cannot hold."""
    if n_tokens > config.context_length:
        raise InputError(
            f"--tokens is {str(n_tokens)[:40]} and the model has {config.context_length} positions; give less."
        )
    tokenizer = NumberTokenizer(config.vocab_size)
    chat = SimpleNamespace(
        prompt_pieces=lambda system: ([1], "", [2]),
        reply_starts=lambda *choices: ([], [{tokenizer.encode(word)[0] for word in words} for words in choices]),
        stop_ids=frozenset(),
    )
    standin = SimpleNamespace(name="random weights", folder=None, config=config, tokenizer=tokenizer, chat=chat)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, config.vocab_size, (n_tokens,), generator=generator).tolist()
    size = settings.chunk_tokens
    chunks = []
    for start in range(0, n_tokens, size):
        part = ids[start : start + size]
        text, end = tokenizer.decode(part), start + len(part)
        cuts = [*range(start, end, SENTENCE_TOKENS), end]
        sentences = tuple(Sentence(a, b, tokenizer.decode(ids[a:b])) for a, b in zip(cuts, cuts[1:], strict=False))
        chunks.append(Chunk(len(chunks), part, start, end, 0, 0, text, sentences))
    return make_plan(standin, "numbers", [QUERY], settings, Prompts(), standin, chunks=chunks)
