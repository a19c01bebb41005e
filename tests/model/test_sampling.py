"""model/sampling.py: greedy, reproducible, and never outside of the nucleus."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.sampling import Sampler, nucleus


def logits_of(rows, size=50, seed=0):
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 3


def test_greedy_takes_the_most_probable_token_of_each_row():
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, -1.0, 2.0]])
    tokens = Sampler()(logits)
    assert tokens.tolist() == [1, 0] and tokens.dtype == torch.int64


@pytest.mark.parametrize("top_p", [0.7, 1.0])
def test_a_seed_draws_the_same_tokens_again(top_p):
    def draw(seed):
        sampler = Sampler(temperature=1.0, top_p=top_p, seed=seed)
        return [sampler(logits_of(3)).tolist() for _ in range(10)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert any(row != draw(7)[0] for row in draw(7))  # the draws go on, they do not repeat themselves


def test_drawing_does_not_touch_the_generator_of_others():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    Sampler(temperature=1.0, seed=1)(logits_of(2))
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax_at_the_temperature(temperature):
    logits = torch.tensor([[1.0, 0.0, -1.0, -3.0]])
    sampler = Sampler(temperature=temperature, seed=0)
    counts = torch.bincount(sampler(logits.expand(20_000, -1)), minlength=4)
    torch.testing.assert_close(counts / 20_000, (logits[0] / temperature).softmax(-1), atol=0.02, rtol=0)


@pytest.mark.parametrize("temperature", [1e-6, 1e-42, 1e-300])
def test_hardly_any_temperature_is_greedy(temperature):
    logits = logits_of(5)
    assert torch.equal(Sampler(temperature=temperature)(logits), logits.argmax(-1))


@pytest.mark.parametrize("top_p", [1e-9, 1e-300])
def test_a_tiny_top_p_is_greedy(top_p):
    logits = logits_of(5)
    assert torch.equal(Sampler(temperature=5.0, top_p=top_p)(logits), logits.argmax(-1))


@given(seed=st.integers(0, 10_000), size=st.integers(1, 40), top_p=st.floats(0.01, 0.999))
def test_the_nucleus_is_the_smallest_set_that_reaches_the_mass(seed, size, top_p):
    probabilities = logits_of(3, size, seed).double().softmax(-1)
    kept = nucleus(probabilities, top_p)
    for before, after in zip(probabilities, kept, strict=True):
        inside = after > 0
        assert torch.equal(after[inside], before[inside])
        assert before[inside].sum() >= top_p - 1e-9
        assert before[inside].sum() - before[inside].min() < top_p + 1e-9  # without its last, it does not reach it
        if not inside.all():
            assert before[inside].min() >= before[~inside].max()


def test_only_tokens_of_the_nucleus_are_drawn():
    logits = torch.tensor([[2.0, 1.9, 0.0, -1.0, -9.0]])  # the first two have 0.86 of the mass
    drawn = Sampler(temperature=1.0, top_p=0.8, seed=0)(logits.expand(2000, -1))
    assert set(drawn.tolist()) == {0, 1}
