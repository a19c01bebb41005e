"""The KV cache: any history of reading and rolling back is forgotten, and rolling back moves a pointer and no byte."""

from __future__ import annotations

from functools import cache as memoize

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_variants import VARIANT, attending_variants, plain_variants, random_tokens, read, tiny_model, variants
from torch.utils._python_dispatch import TorchDispatchMode

from model import KVCache
from model.sampling import Sampler
from model.session import PREFILL_TOKENS, Session
from weights.config import read_model_config

CAPACITY = 96


@memoize
def model_of(name):
    return tiny_model(VARIANT[name], CAPACITY)


def fresh(name, tokens):
    """Logits after reading the tokens in one go, in a new cache."""
    model = model_of(name)
    return read(model, KVCache(model.config, len(tokens)), tokens)


# What to do next: read so many tokens, or go back to a fraction of what has been read.
steps = st.one_of(st.tuples(st.just("read"), st.integers(1, 30)), st.tuples(st.just("back"), st.floats(0, 1)))


@attending_variants
@settings(max_examples=25)
@given(history=st.lists(steps, min_size=1, max_size=12), last=st.integers(1, 20), seed=st.integers(0, 5))
def test_after_any_history_the_next_logits_are_those_of_a_fresh_prefill(variant, history, last, seed):
    model = model_of(variant.name)
    cache, held = KVCache(model.config, CAPACITY), []
    cache.storage.fill_(float("nan"))  # whatever bytes are in the free part, nobody may look at them
    supply = iter(random_tokens(1000, seed))
    for what, amount in history:
        if what == "back":
            held = held[: int(amount * len(held))]
            cache.rollback(len(held))
        else:
            new = [next(supply) for _ in range(min(amount, CAPACITY - 20 - len(held)))]
            if new:
                read(model, cache, new)
                held += new
        assert cache.length == len(held)
    new = [next(supply) for _ in range(last)]
    torch.testing.assert_close(read(model, cache, new), fresh(variant.name, held + new), rtol=1e-4, atol=5e-5)


@attending_variants
@settings(max_examples=20)
@given(borders=st.sets(st.integers(1, 79), max_size=8))
def test_any_split_gives_the_logits_of_one_shot(variant, borders):
    model, tokens = model_of(variant.name), random_tokens(80)
    cache, ends, logits = KVCache(model.config, 80), [*sorted(borders), 80], []
    with torch.no_grad():
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            logits.append(model(torch.tensor([tokens[start:end]]), cache, all_logits=True)[0])
        expected = model(torch.tensor([tokens]), all_logits=True)[0]
    torch.testing.assert_close(torch.cat(logits), expected, rtol=1e-4, atol=5e-5)


def test_only_the_last_logits_are_computed_unless_asked_otherwise():
    model = model_of("llama")
    sizes = []
    hook = model.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[1]))
    try:
        with torch.no_grad():
            model(torch.tensor([random_tokens(30)]))
            Session(model, 30).prefill(random_tokens(30))
            model(torch.tensor([random_tokens(30)]), all_logits=True)
    finally:
        hook.remove()
    assert sizes == [1, 1, 30]


def test_a_long_prompt_is_read_in_pieces_of_bounded_size(monkeypatch):
    monkeypatch.setattr("model.session.PREFILL_TOKENS", 16)
    session, tokens = Session(model_of("llama"), 50), random_tokens(50)
    sizes = []
    hook = session.model.model.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[1]))
    try:
        logits = session.prefill(tokens)
    finally:
        hook.remove()
    assert sizes == [16, 16, 16, 2] and PREFILL_TOKENS == 4096
    torch.testing.assert_close(logits[0], fresh("llama", tokens), rtol=1e-4, atol=5e-5)


class Operations(TorchDispatchMode):
    """Every operation on tensors that runs inside, by name."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_rollback_moves_a_pointer_and_no_byte():
    model = model_of("llama")
    cache = KVCache(model.config, CAPACITY)
    read(model, cache, random_tokens(60))
    storage, bytes_before = cache.storage, cache.storage.clone()
    address, version = storage.data_ptr(), storage._version
    with Operations() as operations:
        cache.rollback(41)
        cache.rollback(41)
        cache.rollback(0)
    assert operations.names == []  # nothing was computed, copied or allocated
    assert cache.length == 0
    assert cache.storage is storage and storage.data_ptr() == address and storage._version == version
    assert torch.equal(storage, bytes_before)
    with Operations() as operations:
        read(model, cache, [1])
    assert operations.names and storage._version > version  # the counters do count


@pytest.mark.gpu
def test_rollback_allocates_nothing_on_the_device():
    model = tiny_model(VARIANT["llama"], CAPACITY, device="cuda", dtype=torch.bfloat16)
    session = Session(model, CAPACITY)
    session.prefill(random_tokens(60))
    torch.cuda.synchronize()
    address, before = session.cache.storage.data_ptr(), torch.cuda.memory_stats()
    session.rollback(17)
    after = torch.cuda.memory_stats()
    assert session.length == 17 and session.cache.storage.data_ptr() == address
    for counter in ("allocation.all.allocated", "allocation.all.freed", "allocated_bytes.all.allocated"):
        assert after[counter] == before[counter]


@pytest.mark.parametrize(
    "act, message",
    [
        (
            lambda cache: cache.positions(7),
            "The cache holds 10 of 16 positions and cannot take 7 more; allocate it with a larger capacity.",
        ),
        (
            lambda cache: cache.rollback(11),
            "The cache cannot be rolled forward from 10 to 11 positions; prefill them instead.",
        ),
        (lambda cache: cache.rollback(-1), "The cache cannot be rolled back to -1 positions; zero is the least."),
    ],
)
def test_what_the_cache_refuses_leaves_it_as_it_was(act, message):
    model = model_of("llama")
    cache = KVCache(model.config, 16)
    read(model, cache, random_tokens(10))
    before = cache.storage.clone()
    with pytest.raises(ValueError) as error:
        act(cache)
    assert str(error.value) == message
    assert cache.length == 10 and torch.equal(cache.storage, before)


def test_a_forward_pass_that_does_not_fit_writes_nothing():
    session = Session(model_of("qwen2"), 16)
    session.prefill(random_tokens(10))
    before = session.cache.storage.clone()
    with pytest.raises(ValueError, match="cannot take 7 more"):
        session.prefill(random_tokens(7))
    assert session.length == 10 and torch.equal(session.cache.storage, before)
    session.prefill(random_tokens(6))  # to the brim
    assert session.length == 16


def test_nothing_cannot_be_read():
    with pytest.raises(ValueError, match="nothing to prefill"):
        Session(model_of("llama"), 4).prefill([])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@variants("llama", "llama-head-96", "qwen2-mha-tied", "phi3")
def test_a_position_costs_what_is_said(variant, dtype):
    config = read_model_config(variant.full_config())
    cache = KVCache(config, 50, dtype=dtype)
    layers, heads = config.num_hidden_layers, config.num_key_value_heads
    assert cache.storage.shape == (layers, 2, heads, 50, config.head_dim)
    assert cache.nbytes == 50 * KVCache.bytes_per_token(config, dtype) == cache.storage.untyped_storage().nbytes()


def test_a_position_of_llama_3_1_8b_costs_128_kib():
    shapes = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
    config = read_model_config(VARIANT["llama"].full_config(**shapes))
    assert KVCache.bytes_per_token(config, torch.bfloat16) == 131072


@plain_variants
@pytest.mark.parametrize("stop_after", [None, 3])
def test_what_was_generated_has_been_read(variant, stop_after):
    """Prompt and reply stay in the cache, whether the reply ends at a stop token or the caller walks away."""
    model, prompt = model_of(variant.name), random_tokens(20)
    session = Session(model, CAPACITY)
    steps = session.generate(prompt, 12, frozenset(), Sampler())
    reply = list(steps) if stop_after is None else [next(steps) for _ in range(stop_after)]
    steps.close()
    known = prompt + reply
    assert len(known) - 1 <= session.length <= len(known)  # the last token may not have been read
    known = known[: session.length] + random_tokens(5, seed=1)
    logits = session.prefill(known[session.length :])[0]
    torch.testing.assert_close(logits, fresh(variant.name, known), rtol=1e-4, atol=5e-5)


@plain_variants
def test_generation_ends_at_a_stop_token_and_does_not_yield_it(variant):
    model, prompt = model_of(variant.name), random_tokens(20)
    session = Session(model, CAPACITY)
    reply = list(session.generate(prompt, 12, frozenset(), Sampler()))
    stop = next(token for i, token in enumerate(reply) if i > 2 and token not in reply[:i])
    session.rollback(0)
    stopped = list(session.generate(prompt, 12, frozenset({stop}), Sampler()))
    assert stopped == reply[: reply.index(stop)]
    assert session.length == len(prompt) + len(stopped)
