"""Common-word extraction: a long numbered list of words, in which ten words appear far more often than the rest.

The task is RULER's CWE (Hsieh et al. 2024, arXiv 2404.06654, section 3, "Aggregation"): the ten common words appear
30 times each and the others 3 times each, and the list grows with the number of the others. As in RULER's published
generator (github.com/NVIDIA/RULER, common_words_extraction.py) lists below 4096 tokens use 6 times and once instead.
"""

from __future__ import annotations

import random

from tasks.document import Question, Span
from tasks.words import ADJECTIVES, NOUNS

COMMON_WORDS_TASKS = {"common_words": "the ten most common words of a long list (RULER's CWE)"}
N_COMMON = 10
QUERY = f"What are the {N_COMMON} most common words in the list?"


def frequencies(n_tokens: int) -> tuple[int, int]:
    """How often a common word and an uncommon word appear in a list of `n_tokens` tokens."""
    return (30, 3) if n_tokens >= 4096 else (6, 1)


def sample_words(rng: random.Random, n_words: int) -> list[str]:
    """`n_words` different words; beyond our list of single words, pairs like "quiet-lake" (about 100,000)."""
    words = [*ADJECTIVES, *NOUNS]
    rng.shuffle(words)
    seen = set(words)
    while len(words) < n_words:
        pair = f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"
        if pair not in seen:
            seen.add(pair)
            words.append(pair)
    return words[:n_words]


def word_list(
    rng: random.Random, n_uncommon: int, common_repeats: int = 30, uncommon_repeats: int = 3
) -> tuple[str, Question]:
    """The list "1. word 2. word ..." in random order, and the question for its common words.

    The evidence is every entry with a common word. It takes the whole list to know which these are, so a margin made
    from it is what a reader with perfect judgement would note, not what one could know at that chunk.
    """
    words = sample_words(rng, N_COMMON + n_uncommon)
    common = set(words[:N_COMMON])
    entries = words[:N_COMMON] * common_repeats + words[N_COMMON:] * uncommon_repeats
    rng.shuffle(entries)
    spans: list[Span] = []
    numbered: list[str] = []
    start = 0
    for number, word in enumerate(entries, start=1):
        entry = f"{number}. {word}"
        if word in common:
            spans.append((start, start + len(entry)))
        numbered.append(entry)
        start += len(entry) + 1
    return " ".join(numbered), Question("common_words", QUERY, tuple(words[:N_COMMON]), tuple(spans))
