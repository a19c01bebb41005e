"""Branches: rows that share a prefix are what each of them would have been alone, and the prefix does not change."""

from __future__ import annotations

from functools import cache as memoize
from functools import partial

import kernels_by_definition
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_variants import ATTENDING, VARIANT, attending_variants, plain_variants, random_tokens, tiny_model, variants

from model import InputError, branch
from model.branch import Branches
from model.cache import KVCache
from model.decode import plain_step
from model.kernels import cuda_branches
from model.sampling import Sampler
from model.session import Session

CAPACITY = 400
CLOSE = {"rtol": 1e-4, "atol": 5e-5}


@memoize
def model_of(name):
    return tiny_model(VARIANT[name], CAPACITY)


def alone(model, prefix, prompt, steps, stop_ids=frozenset()):
    """The reply to one prompt after one prefix, in a cache of its own."""
    session = Session(model, CAPACITY)
    if prefix:
        session.prefill(prefix)
    return list(session.generate(prompt, steps, stop_ids, Sampler()))


def together(model, document, ends, prompts, steps, stop_ids=frozenset()):
    """The replies of all branches; the document's region of the cache must stay as it was."""
    session = Session(model, CAPACITY)
    session.prefill(document)
    before = session.cache.storage[:, :, :, : len(document)].clone()
    replies = [[] for _ in ends]
    for tokens in session.branch(ends, prompts, steps, stop_ids, Sampler()):
        assert len(tokens) == len(ends)
        for reply, token in zip(replies, tokens, strict=True):
            if token is not None:
                reply.append(token)
    assert session.length == len(document)
    assert torch.equal(session.cache.storage[:, :, :, : len(document)], before)
    return replies


ROWS = {
    "one": ([60], [7]),
    "equal": ([20, 40, 60], [6, 6, 6]),
    "ragged": ([20, 40, 60], [11, 1, 5]),
    "unordered": ([60, 13, 60, 41], [3, 12, 9, 3]),
    "from-the-start": ([0, 60, 1], [4, 2, 8]),
}


@variants()
@pytest.mark.parametrize("ends, lengths", ROWS.values(), ids=ROWS)
def test_branches_are_what_each_row_is_alone(variant, ends, lengths):
    model, document = model_of(variant.name), random_tokens(60)
    prompts = [random_tokens(length, seed=1 + row) for row, length in enumerate(lengths)]
    replies = together(model, document, ends, prompts, steps=8)
    assert replies == [alone(model, document[:end], prompt, 8) for end, prompt in zip(ends, prompts, strict=True)]


@attending_variants
@pytest.mark.parametrize("ends, lengths", ROWS.values(), ids=ROWS)
@torch.no_grad()
def test_logits_of_branches_are_those_of_each_row_alone(variant, ends, lengths):
    """Prompts first, then tokens one by one, as a decoder feeds them."""
    model, document = model_of(variant.name), random_tokens(60)
    texts = [random_tokens(length + 4, seed=1 + row) for row, length in enumerate(lengths)]
    pads = [max(lengths) - length for length in lengths]
    cache = KVCache(model.config, CAPACITY)
    model(torch.tensor([document]), cache)
    branches = Branches(cache, ends, pads, max(lengths) + 4)
    rows = torch.tensor([[0] * pad + text for pad, text in zip(pads, texts, strict=True)])
    logits = [model(rows[:, : max(lengths)], branches)]
    logits += [model(rows[:, i : i + 1], branches) for i in range(max(lengths), max(lengths) + 4)]
    logits = torch.cat(logits, dim=1)  # (rows, 5, vocab_size)
    for row, (end, text) in enumerate(zip(ends, texts, strict=True)):
        expected = model(torch.tensor([document[:end] + text]), all_logits=True)[0, -5:]
        torch.testing.assert_close(logits[row], expected, **CLOSE)


LIMITS = [(7, 128, 8192), (7, 3, 8192), (1, 128, 60), (4096, 128, 8192)]
ALL_ROWS = [(VARIANT["llama"], rows, limits) for rows in ROWS for limits in LIMITS]


@pytest.mark.parametrize(
    "variant, rows, limits", ALL_ROWS + [(each, "unordered", LIMITS[0]) for each in ATTENDING], ids=str
)
def test_rows_of_varying_length_in_one_call(monkeypatch, variant, rows, limits):
    """As on a GPU, with the kernel by its definition; the prefix in pieces, as far as one of the limits lets it."""
    for name, limit in zip(("MIN_PIECE", "ENOUGH_GROUPS", "MAX_COPIES"), limits, strict=True):
        monkeypatch.setattr(cuda_branches, name, limit)
    monkeypatch.setattr(branch, "flash_serves", lambda q: True)
    monkeypatch.setattr(cuda_branches, "varlen_attention", kernels_by_definition.varlen_attention)
    test_logits_of_branches_are_those_of_each_row_alone(variant, *ROWS[rows])


@attending_variants
@settings(max_examples=10)
@given(data=st.data())
def test_any_branches_continue_as_alone(variant, data):
    model, document = model_of(variant.name), random_tokens(50)
    rows = data.draw(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), min_size=1, max_size=5))
    ends = [end for end, _ in rows]
    prompts = [random_tokens(length, seed=row) for row, (_, length) in enumerate(rows)]
    replies = together(model, document, ends, prompts, steps=3)
    assert replies == [alone(model, document[:end], prompt, 3) for end, prompt in zip(ends, prompts, strict=True)]


@plain_variants
def test_rows_stop_one_by_one(variant):
    model, document = model_of(variant.name), random_tokens(60)
    ends, prompts = [20, 60, 40], [random_tokens(5, seed=seed) for seed in (1, 2, 3)]
    whole = [alone(model, document[:end], prompt, 20) for end, prompt in zip(ends, prompts, strict=True)]
    stop_ids = frozenset({whole[0][1], whole[1][6]})
    expected = [alone(model, document[:end], p, 20, stop_ids) for end, p in zip(ends, prompts, strict=True)]
    replies = together(model, document, ends, prompts, 20, stop_ids)
    assert replies == expected
    assert len(set(map(len, replies))) > 1 and min(map(len, replies)) < 20


def test_branches_end_when_all_rows_have():
    session = Session(model_of("llama"), CAPACITY)
    session.prefill(random_tokens(30))
    every_id = frozenset(range(session.model.config.vocab_size))
    assert list(session.branch([10, 30], [[1], [2]], 50, every_id, Sampler())) == []


def test_an_end_beyond_what_has_been_read_is_refused():
    """Stale keys stand there."""
    session = Session(model_of("llama"), CAPACITY)
    session.prefill(random_tokens(60))
    session.rollback(40)
    with pytest.raises(ValueError, match=r"cannot begin at \[20, 41\]; the cache holds 40 positions"):
        next(session.branch([20, 41], [[1], [2]], 5, frozenset(), Sampler()))


def test_what_does_not_fit_above_the_length_is_refused():
    model = model_of("llama")
    session = Session(model, 100)
    session.prefill(random_tokens(60))
    before = session.cache.storage.clone()
    with pytest.raises(ValueError) as error:
        list(session.branch([20, 60], [[1, 2], [3]], 19, frozenset(), Sampler()))
    assert str(error.value) == (
        "2 branches of 21 positions do not fit into the 40 free positions of the cache; "
        "allocate it with a larger capacity or take fewer rows at a time."
    )
    assert session.length == 60 and torch.equal(session.cache.storage, before)
    assert len(list(session.branch([20, 60], [[1, 2], [3]], 18, frozenset(), Sampler()))) == 18  # to the brim


@plain_variants
def test_a_probability_is_the_softmax_over_the_two_kinds_of_reply(variant):
    model, document = model_of(variant.name), random_tokens(30)
    prompts = [random_tokens(length, seed=length) for length in (9, 3, 14)]
    session = Session(model, CAPACITY)
    session.prefill(document)
    before = session.cache.storage[:, :, :, :30].clone()
    probabilities = session.probability(prompts, [5, 6], [7])
    assert session.length == 30 and torch.equal(session.cache.storage[:, :, :, :30], before)
    for prompt, probability in zip(prompts, probabilities, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([document + prompt]))[0, -1]
        three = logits[[5, 6, 7]].softmax(-1)
        assert probability == pytest.approx((three[0] + three[1]).item(), abs=1e-4)


@attending_variants
def test_a_probability_rides_along_with_what_is_read(variant):
    """In one forward pass, and both are what they are alone."""
    model, document, prompt = model_of(variant.name), random_tokens(60), random_tokens(12, seed=1)
    found, alone, judge = (Session(model, CAPACITY) for _ in range(3))
    for session in (found, alone, judge):
        session.prefill(document[:30])
    alone.prefill(document[30:])
    probability = found.prefill_and_probability(document[30:], judge, prompt, [5, 6], [7])
    assert probability == pytest.approx(judge.probability([prompt], [5, 6], [7])[0], abs=1e-4)
    assert (found.length, judge.length) == (60, 30)
    read = (session.cache.storage[:, :, :, :60] for session in (found, alone))
    torch.testing.assert_close(*read, **CLOSE)


@pytest.mark.parametrize(
    "verb",
    [
        lambda session: next(session.generate([1], 2, frozenset(), Sampler())),
        lambda session: next(session.branch([5], [[1]], 2, frozenset(), Sampler())),
        lambda session: session.probability([[1]], [5], [7]),
        lambda session: session.prefill_and_probability([1], Session(session.model, 8), [2], [5], [7]),
    ],
    ids=["generate", "branch", "probability", "prefill_and_probability"],
)
def test_logits_that_are_no_numbers_are_refused(verb):
    session = Session(tiny_model(VARIANT["llama"], 40), 40)
    session.prefill(random_tokens(5))
    session.model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(InputError, match="NaN or infinity"):
        verb(session)


def test_the_cpu_decodes_the_plain_way():
    model = model_of("llama")
    assert not Session(model, 8).use_graphs


# On a GPU.


@memoize
def gpu_model(name):
    return tiny_model(VARIANT[name], CAPACITY, dtype=torch.bfloat16, device="cuda")


GRAPHED = ["llama", "llama-mha", "llama-head-64", "llama-head-96", "llama-head-128", "qwen2", "phi3", "phi3-longrope"]
GRAPHED += ["qwen2-window", "phi3-window"]


@pytest.mark.gpu
@variants(*GRAPHED)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("ends, lengths", ROWS.values(), ids=ROWS)
@torch.inference_mode()
def test_graphs_give_the_logits_of_the_plain_path(variant, ends, lengths, compiled):
    model, document = gpu_model(variant.name), random_tokens(60)
    prompts = [random_tokens(length, seed=1 + row) for row, length in enumerate(lengths)]
    session = Session(model, CAPACITY)
    assert session.use_graphs
    session.prefill(document)
    before = session.cache.storage[:, :, :, : len(document)].clone()

    def steps(step_of):
        _, branches = session._read_branches(ends, prompts, 8)
        step = step_of(branches)
        fed = torch.tensor([random_tokens(8, seed=9 + row) for row in range(len(ends))], device="cuda")
        return torch.stack([step(fed[:, i]).float().clone() for i in range(8)])

    def graph(branches):
        model.compiled = compiled
        step = session.graphs.begin(branches, 8)
        model.compiled = False
        return step

    graphed, plain = steps(graph), steps(partial(plain_step, model))
    again = steps(graph)  # the graph that was captured, on other branches
    assert (graphed - plain).abs().mean() < 0.1 * plain.std()
    assert (graphed - again).abs().mean() < 0.01 * plain.std()
    assert torch.equal(session.cache.storage[:, :, :, : len(document)], before)


@pytest.mark.gpu
@variants(*GRAPHED)
def test_graphs_read_what_they_generate(variant):
    """After a reply, at its end or cut short, the cache is what a prefill of the same tokens makes of it."""
    model, document = gpu_model(variant.name), random_tokens(60)
    for steps, taken in ((13, 13), (13, 2)):
        session = Session(model, CAPACITY)
        tokens = session.generate(document, steps, frozenset(), Sampler())
        reply = [next(tokens) for _ in range(taken)]
        tokens.close()
        known = document + reply
        assert len(known) - 1 <= session.length <= len(known)
        fresh = Session(model, CAPACITY)
        expected, found = fresh.prefill(known + [1]), session.prefill([*known[session.length :], 1])
        assert (found - expected).float().abs().mean() < 0.1 * expected.float().std()
