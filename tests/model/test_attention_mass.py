"""The attention that each span gets is that of attention by its definition, and watching changes nothing."""

from __future__ import annotations

from functools import cache as memoize

import pytest
import torch
from model_variants import VARIANT, attending_variants, random_tokens, read, tiny_model, variants

from model import KVCache, attention_mass
from model.attention import attention, causal_mask
from model.attention_mass import AttentionMass, attention_probabilities, contrast
from model.branch import Branches
from model.config import PLAIN, AttentionOptions
from model.session import Session

CAPACITY = 200
BORDERS = [[0, 3, 20], [7, 8, 30, 41], [0, 60]]


@memoize
def model_of(name):
    return tiny_model(VARIANT[name], CAPACITY)


@pytest.mark.parametrize("window", [None, 9, 100])
@pytest.mark.parametrize("soft_cap, scale", [(None, None), (1.5, 0.6)])
def test_probabilities_are_those_of_the_definition(window, soft_cap, scale):
    options = AttentionOptions(window, soft_cap, scale)
    generator = torch.Generator().manual_seed(0)
    q, keys = torch.randn((1, 4, 7, 16), generator=generator), torch.randn((1, 2, 40, 16), generator=generator)
    # With the identity for values, the outputs of attention are its probabilities.
    expected = attention(q, keys, torch.eye(40).expand(1, 2, 40, 40), causal_mask(7, 40, window), options)[0]
    scores = options.scores(q[0] @ keys[0].repeat_interleave(2, dim=0).transpose(1, 2), 16)
    lse = scores.masked_fill(~causal_mask(7, 40, window), float("-inf")).logsumexp(-1)
    positions = torch.arange(33, 40)[None], torch.arange(5, 30)[None]
    found = attention_probabilities(q, keys[:, :, 5:30], lse[None], *positions, options)
    torch.testing.assert_close(found[0], expected[:, :, 5:30])


def test_keys_with_large_biases_do_not_round_probabilities():
    """As Qwen2's: their scores are thousands, of which bfloat16 keeps the first three digits."""
    generator = torch.Generator().manual_seed(0)
    q, keys = (torch.randn((2, n, 16), generator=generator) for n in (5, 30))
    q, keys = (q + 20).bfloat16(), (keys + torch.linspace(-60, 60, 16)).bfloat16()
    scores = q.double() @ keys.double().transpose(1, 2) / 4
    positions = torch.arange(30, 35)[None], torch.arange(30)[None]
    found = attention_probabilities(q[None], keys[None], scores.logsumexp(-1).float()[None], *positions, PLAIN)
    torch.testing.assert_close(found[0], scores.softmax(-1).float(), rtol=1e-2, atol=1e-3)


class Recorded:
    """A cache that computes attention by its definition and keeps the probabilities."""

    def __init__(self, cache):
        self.cache, self.probabilities = cache, []

    def positions(self, seq_len):
        return self.cache.positions(seq_len)

    def attend(self, layer_idx, q, k, v, options):
        out = self.cache.attend(layer_idx, q, k, v, options)
        end = self.cache.length + k.shape[2]
        keys, _ = self.cache.layer(layer_idx, end)
        values = torch.eye(end).expand(1, keys.shape[1], end, end)
        self.probabilities.append(attention(q, keys, values, causal_mask(q.shape[2], end, options.window), options)[0])
        return out

    def advance(self, seq_len):
        self.cache.advance(seq_len)


def prompt_pair():
    """A question and an empty one: prompts of different lengths, and which of their tokens are watched."""
    return (random_tokens(12, seed=12), range(2, 9)), (random_tokens(5, seed=5), range(1, 4))


@attending_variants
@pytest.mark.parametrize("most_scores", [attention_mass.MOST_SCORES, 1], ids=["all pairs together", "one at a time"])
@torch.no_grad()
def test_a_span_gets_what_the_word_gives_it_that_looks_at_it_most(variant, most_scores, monkeypatch):
    """Computed once more from the probabilities of each prompt alone, by the definition."""
    monkeypatch.setattr(attention_mass, "MOST_SCORES", most_scores)
    model, document, ends = model_of(variant.name), random_tokens(60), [20, 41, 60]
    session = Session(model, CAPACITY)
    session.prefill(document)
    before = session.cache.storage[:, :, :, :60].clone()
    found = session.attention(ends, *prompt_pair(), BORDERS)
    assert session.length == 60 and torch.equal(session.cache.storage[:, :, :, :60], before)
    for end, borders, spans in zip(ends, BORDERS, found, strict=True):
        masses = []
        for prompt, watched in prompt_pair():
            alone = KVCache(model.config, CAPACITY)
            read(model, alone, document[:end])
            recorded = Recorded(alone)
            model(torch.tensor([prompt]), recorded)
            probabilities = torch.stack(recorded.probabilities)[:, :, watched.start : watched.stop]
            by_span = [probabilities[..., a:b].sum(dim=-1) for a, b in zip(borders, borders[1:], strict=False)]
            masses.append(torch.stack(by_span, dim=-1))  # (layers, heads, tokens, spans)
        more = (masses[0] - masses[1].amax(dim=2, keepdim=True)).clamp(min=0) ** 2
        expected = [max(more[:, :, token, span].sum() for token in range(7)) for span in range(len(borders) - 1)]
        torch.testing.assert_close(torch.tensor(spans), torch.stack(expected), rtol=1e-3, atol=1e-6)


@variants("llama", "qwen2-window")
@torch.no_grad()
def test_watching_changes_no_logits(variant):
    model = model_of(variant.name)
    logits = []
    for kind in (Branches, AttentionMass):
        cache = KVCache(model.config, CAPACITY)
        read(model, cache, random_tokens(60))
        more = () if kind is Branches else ((range(0, 4), range(1, 3)), [[0, 30]])
        logits.append(
            model(torch.tensor([random_tokens(4), random_tokens(4, seed=1)]), kind(cache, [30, 30], [0, 0], 9, *more))
        )
    assert torch.equal(*logits)


def test_what_a_head_always_looks_at_cancels_out():
    asked = torch.tensor([[[0.5, 0.2, 0.1], [0.4, 0.5, 0.0]], [[0.1, 0.1, 0.4], [0.0, 0.3, 0.0]]])
    empty = torch.tensor([[[0.5, 0.1, 0.3]], [[0.1, 0.2, 0.1]]])
    torch.testing.assert_close(contrast(asked, empty), torch.tensor([[0.0, 0.01, 0.09], [0.0, 0.17, 0.0]]))


@pytest.mark.gpu
@variants("llama", "qwen2", "phi3", "qwen2-window")
def test_on_a_gpu(variant):
    found = []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        session = Session(tiny_model(VARIANT[variant.name], CAPACITY, device=device, dtype=dtype), CAPACITY)
        session.prefill(random_tokens(60))
        found.append(session.attention([20, 41, 60], *prompt_pair(), BORDERS))
    for spans, expected in zip(*map(lambda rows: map(torch.tensor, rows), found), strict=True):
        assert (spans - expected).norm() < 0.1 * expected.norm()
