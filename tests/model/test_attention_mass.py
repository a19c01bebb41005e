"""The attention that each position gets is that of attention by its definition, and watching changes nothing."""

from __future__ import annotations

import pytest
import torch
from model_variants import ATTENDING, VARIANTS, random_tokens, read, tiny_model, variants

from model import KVCache, attention_mass
from model.attention import attention, causal_mask
from model.attention_mass import AttentionMass

VARIANT = {variant.name: variant for variant in VARIANTS}


@pytest.mark.parametrize("window", [None, 1, 9, 100])
@pytest.mark.parametrize("lengths", [(1, 50), (5, 5), (7, 40)], ids=str)
@pytest.mark.parametrize("block", [3, 16, 8192])
def test_mass_is_the_sum_of_the_definitions_probabilities(monkeypatch, lengths, window, block):
    monkeypatch.setattr(attention_mass, "KEY_BLOCK", block)
    n_queries, n_keys = lengths
    generator = torch.Generator().manual_seed(n_keys)
    q = torch.randn((1, 4, n_queries, 16), generator=generator)
    keys = torch.randn((1, 2, n_keys, 16), generator=generator)
    # With the identity for values, the outputs of attention are its probabilities.
    values = torch.eye(n_keys).expand(1, 2, n_keys, n_keys)
    expected = attention(q, keys, values, causal_mask(n_queries, n_keys, window)).sum(dim=(0, 1, 2))
    torch.testing.assert_close(attention_mass.attention_mass(q, keys, window), expected)


@variants(*ATTENDING)
def test_watching_changes_nothing_and_counts_each_watched_token_once(variant):
    model, document, prompt = tiny_model(VARIANT[variant.name], 96), random_tokens(60), random_tokens(20, seed=1)
    caches = [KVCache(model.config, 96) for _ in range(2)]
    for cache in caches:
        read(model, cache, document)
    watching = AttentionMass(caches[0], range(3, 11), range(1, model.config.num_hidden_layers))
    with torch.no_grad():
        found = model(torch.tensor([prompt]), watching)[0, -1]
    assert torch.equal(found, read(model, caches[1], prompt))
    assert torch.equal(caches[0].storage, caches[1].storage) and caches[0].length == 80
    assert watching.mass.shape == (80,) and watching.mass[60 + 11 :].count_nonzero() == 0
    n_probabilities = (model.config.num_hidden_layers - 1) * model.config.num_attention_heads * 8
    torch.testing.assert_close(watching.mass.sum(), torch.tensor(float(n_probabilities)))
