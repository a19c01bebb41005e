"""The attention that each span gets is that of attention by its definition, and watching changes nothing."""

from __future__ import annotations

from functools import cache as memoize

import pytest
import torch
from model_variants import ATTENDING, ODD, VARIANTS, random_tokens, read, tiny_model, variants

from model import KVCache
from model.attention import attention, causal_mask
from model.attention_mass import AttentionMass, attention_probabilities, contrast
from model.branch import Branches
from model.config import PLAIN, AttentionOptions
from model.session import Session

VARIANT = {variant.name: variant for variant in VARIANTS + ODD}
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
    found = attention_probabilities(q[0], keys[0, :, 5:30], lse, torch.arange(33, 40), 5, options)
    torch.testing.assert_close(found, expected[:, :, 5:30])


def test_keys_with_large_biases_do_not_round_probabilities():
    """As Qwen2's: their scores are thousands, of which bfloat16 keeps the first three digits."""
    generator = torch.Generator().manual_seed(0)
    q, keys = (torch.randn((2, n, 16), generator=generator) for n in (5, 30))
    q, keys = (q + 20).bfloat16(), (keys + torch.linspace(-60, 60, 16)).bfloat16()
    scores = q.double() @ keys.double().transpose(1, 2) / 4
    found = attention_probabilities(q, keys, scores.logsumexp(-1).float(), torch.arange(30, 35), 0, PLAIN)
    torch.testing.assert_close(found, scores.softmax(-1).float(), rtol=1e-2, atol=1e-3)


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


@variants(*ATTENDING)
@torch.no_grad()
def test_mass_is_what_each_row_alone_looks_at(variant):
    model, document, ends = model_of(variant.name), random_tokens(60), [20, 41, 60]
    prompts = [random_tokens(n, seed=n) for n in (12, 5, 9)]
    watched = [range(2, 9), range(0, 5), range(8, 9)]
    session = Session(model, CAPACITY)
    session.prefill(document)
    before = session.cache.storage[:, :, :, :60].clone()
    masses = session.attention(ends, prompts, watched, BORDERS)
    assert session.length == 60 and torch.equal(session.cache.storage[:, :, :, :60], before)
    for end, prompt, slots, borders, mass in zip(ends, prompts, watched, BORDERS, masses, strict=True):
        alone = KVCache(model.config, CAPACITY)
        read(model, alone, document[:end])
        recorded = Recorded(alone)
        model(torch.tensor([prompt]), recorded)
        probabilities = torch.stack(recorded.probabilities)[:, :, slots.start : slots.stop].sum(dim=2)
        spans = [probabilities[:, :, a:b].sum(dim=-1) for a, b in zip(borders, borders[1:], strict=False)]
        torch.testing.assert_close(mass, torch.stack(spans, dim=-1), rtol=1e-3, atol=1e-5)


@variants("llama", "qwen2-window")
@torch.no_grad()
def test_watching_changes_no_logits(variant):
    model = model_of(variant.name)
    logits = []
    for kind in (Branches, AttentionMass):
        cache = KVCache(model.config, CAPACITY)
        read(model, cache, random_tokens(60))
        more = () if kind is Branches else ([range(0, 4), range(1, 3)], [[0, 30], [10, 20]])
        logits.append(
            model(torch.tensor([random_tokens(4), random_tokens(4, seed=1)]), kind(cache, [30, 60], [0, 0], 9, *more))
        )
    assert torch.equal(*logits)


def test_what_a_head_always_looks_at_cancels_out():
    mass = torch.tensor([[[0.5, 0.2, 0.1]], [[0.1, 0.1, 0.4]]])
    baseline = torch.tensor([[[0.5, 0.1, 0.3]], [[0.1, 0.2, 0.1]]])
    assert contrast(mass, baseline) == pytest.approx([0.0, 0.01, 0.09])


@pytest.mark.gpu
@variants("llama", "qwen2", "phi3", "qwen2-window")
def test_mass_on_a_gpu(variant):
    masses = []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        session = Session(tiny_model(VARIANT[variant.name], CAPACITY, device=device, dtype=dtype), CAPACITY)
        session.prefill(random_tokens(60))
        prompts = [random_tokens(n, seed=n) for n in (12, 5, 9)]
        masses.append(session.attention([20, 41, 60], prompts, [range(2, 9), range(0, 5), range(8, 9)], BORDERS))
    for found, expected in zip(*masses, strict=True):
        assert (found - expected).norm() < 0.1 * expected.norm()
