"""scripts/kv_cache.py, the lesson: what it claims holds for every family, and its output claims it."""

from __future__ import annotations

import re

import torch
from model_variants import random_tokens, tiny_model, variants

from model import KVCache
from scripts import kv_cache
from scripts.kv_cache import ask_and_forget, write_with_cache, write_without_cache

some_variants = variants("llama", "phi3", "qwen2", "qwen2-window", "llama-mqa")


@some_variants
def test_the_cache_changes_no_token_and_every_token_is_read_once(variant):
    model = tiny_model(variant, 128)
    prompt, cache = random_tokens(30, seed=1), KVCache(model.config, 64)
    written = write_with_cache(model, cache, prompt, 20)
    assert written == write_without_cache(model, prompt, 20)
    assert len(set(written)) > 5  # a model that repeats one token would hide a mistake
    assert cache.length == 30 + 19  # all but the last token


@some_variants
def test_a_stop_token_ends_the_reply_and_is_not_part_of_it(variant):
    model = tiny_model(variant, 128)
    prompt = random_tokens(30, seed=1)
    written = write_without_cache(model, prompt, 20)
    first = written.index(written[7])
    assert write_with_cache(model, KVCache(model.config, 64), prompt, 20, frozenset({written[7]})) == written[:first]


@some_variants
def test_what_was_asked_leaves_no_trace(variant):
    model = tiny_model(variant, 128)
    story, question, sequel = random_tokens(40, seed=1), random_tokens(9, seed=2), random_tokens(25, seed=3)
    asked, never_asked = KVCache(model.config, 128), KVCache(model.config, 128)
    for cache in (asked, never_asked):
        model(torch.tensor([story]), cache)
    address = asked.storage.data_ptr()
    reply, length = ask_and_forget(model, asked, question, frozenset())
    assert length == 40 + 9 + len(reply) - 1 and asked.length == 40
    before, after = (model(torch.tensor([sequel]), cache, all_logits=True) for cache in (never_asked, asked))
    assert torch.equal(before, after)
    assert asked.storage.data_ptr() == address


def test_the_lesson_says_yes_and_shows_the_rollback(capsys, monkeypatch):
    """With a shorter beginning of the story, which takes less time here."""
    monkeypatch.setattr(kv_cache, "PARAGRAPHS", 1)
    monkeypatch.setattr(kv_cache, "NEW_TOKENS", 5)
    kv_cache.main()
    out = capsys.readouterr().out
    assert re.findall(r": (yes|NO)\.", out) == ["yes", "yes"]
    story = int(re.search(r"read (\d+) tokens", out)[1])
    (written, first), (asked, second) = [map(int, pair) for pair in re.findall(r"cache (\d+) -> (\d+)", out)]
    assert written == story + 4 and first == second == story < asked
    before, after = re.search(r"at (0x\w+) before and (0x\w+) after", out).groups()
    assert before == after
