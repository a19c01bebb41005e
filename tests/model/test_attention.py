"""Attention in parts and in blocks equals attention by its definition, with the CUDA kernels stood in for on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from model.attention import attention, causal_attention, causal_mask
from model.config import PLAIN, AttentionOptions
from model.kernels import cuda_attention, part
from model.kernels.merge import merge_all

LENGTHS = [(20, 20), (20, 200), (37, 300), (16, 33), (16, 48), (32, 260), (5, 100), (1, 70)]  # queries, keys


OPTIONS = {"plain": PLAIN, "scaled": AttentionOptions(scale=0.6), "capped": AttentionOptions(soft_cap=1.5, scale=0.4)}
some_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def reference(q, keys, values, causal, options=PLAIN):
    return attention(q, keys, values, causal_mask(q.shape[2], keys.shape[2]) if causal else None, options)


def random_qkv(n_queries, n_keys):
    generator = torch.Generator().manual_seed(n_keys)
    shapes = (1, 4, n_queries, 16), (1, 2, n_keys, 16), (1, 2, n_keys, 16)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("window", [None, 1, 7, 1000])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_the_definition_is_pytorchs_and_every_kernels(lengths, window):
    q, keys, values = random_qkv(*lengths)
    mask = causal_mask(*lengths, window)
    first = [max(0, at - (window or at + 1) + 1) for at in range(lengths[1] - lengths[0], lengths[1])]
    assert [row.nonzero().flatten().tolist() for row in mask] == [
        list(range(start, lengths[1] - lengths[0] + i + 1)) for i, start in enumerate(first)
    ]
    expected = attention(q, keys, values, mask)
    torch.testing.assert_close(expected, F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True))
    torch.testing.assert_close(causal_attention(q, keys, values, AttentionOptions(window)), expected)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize("options", [OPTIONS["scaled"], OPTIONS["capped"]], ids=["scaled", "capped"])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_a_scale_and_a_soft_cap_are_what_they_say(lengths, options, window):
    q, keys, values = random_qkv(*lengths)
    scores = torch.einsum("bhqd,bhkd->bhqk", q, keys.repeat_interleave(2, dim=1)) * options.scale
    if options.soft_cap:
        assert scores.abs().max() > options.soft_cap
        scores = options.soft_cap * torch.tanh(scores / options.soft_cap)
    mask = causal_mask(*lengths, window)
    expected = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ values.repeat_interleave(2, dim=1)
    torch.testing.assert_close(attention(q, keys, values, mask, options), expected)
    torch.testing.assert_close(causal_attention(q, keys, values, replace(options, window=window)), expected)


@some_options
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_blocks_of_queries(monkeypatch, lengths, causal, options):
    monkeypatch.setattr(part, "MAX_SCORES", 1500)
    q, keys, values = random_qkv(*lengths)
    out, lse = part.attention_in_blocks(q, keys, values, causal, None, options)
    torch.testing.assert_close(out, reference(q, keys, values, causal, options))
    assert lse.shape == q.shape[:3]
    torch.testing.assert_close(part.part_attention(q, keys, values, causal, None, options), (out, lse))


@pytest.mark.parametrize("compute", [part.part_attention, part.attention_in_blocks])
def test_a_bias_hides_keys(compute):
    q, keys, values = random_qkv(3, 40)
    bias = torch.zeros(3, 40).masked_fill(torch.arange(40) >= torch.tensor([[40], [17], [1]]), float("-inf"))
    out, lse = compute(q, keys, values, False, bias)
    for query, n_seen in enumerate((40, 17, 1)):
        seen = q[:, :, query : query + 1], keys[:, :, :n_seen], values[:, :, :n_seen]
        torch.testing.assert_close(out[:, :, query : query + 1], reference(*seen, causal=False))
        torch.testing.assert_close(lse[:, :, query : query + 1], part.attention_in_blocks(*seen, False)[1])


def test_a_query_that_sees_no_key():
    out, lse = part.attention_in_blocks(*random_qkv(1, 7), False, torch.full((1, 7), float("-inf")))
    assert out.count_nonzero() == 0 and (lse == float("-inf")).all()


def test_parts_merge_into_the_whole():
    """Any number of them, some without keys."""
    q, keys, values = random_qkv(3, 40)
    cuts = [(0, 7), (7, 8), (8, 40)]
    parts = [part.attention_in_blocks(q, keys[:, :, a:b], values[:, :, a:b], False) for a, b in cuts]
    nothing = torch.zeros_like(q), torch.full(q.shape[:3], float("-inf"))
    outputs, lses = (torch.stack(stack) for stack in zip(nothing, *parts, nothing, strict=True))
    expected = part.attention_in_blocks(q, keys, values, False)
    torch.testing.assert_close(merge_all(outputs, lses), expected)
    out, lse = merge_all(*(torch.stack([x, x]) for x in nothing))
    assert out.count_nonzero() == 0 and (lse == float("-inf")).all()


@pytest.mark.parametrize("scale", [None, 0.6])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_pieces_of_a_prefix(monkeypatch, lengths, scale):
    used = []

    def flash(q, keys, values, causal, scale):
        return part.attention_in_blocks(q, keys, values, causal, None, AttentionOptions(scale=scale))

    def cudnn(q, keys, values, bias, with_lse, dropout, causal, *, scale):
        used.append((q.shape[2], keys.shape[2], causal))
        out, lse = flash(q, keys, values, causal, scale)
        return out, lse.unsqueeze(-1)

    monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_cudnn_attention", cudnn)
    monkeypatch.setattr(cuda_attention, "flash_attention", flash)
    monkeypatch.setattr(cuda_attention, "_cudnn_serves", lambda q: True)
    monkeypatch.setattr(cuda_attention, "QUERY_BLOCK", 16)
    monkeypatch.setattr(cuda_attention, "PREFIX_BLOCK", 32)
    monkeypatch.setattr(cuda_attention, "cudnn_from", 0)
    q, keys, values = random_qkv(*lengths)
    cuda_attention.expect_much()
    expected = reference(q, keys, values, True, AttentionOptions(scale=scale))
    torch.testing.assert_close(cuda_attention.chunk_attention(q, keys, values, scale), expected)
    assert bool(used) == (lengths[0] >= 16 and lengths[1] - lengths[0] >= 32)
    # A plan for each pair of lengths is dear: only few pairs may occur.
    pieces = [(n_queries, n_keys) for n_queries, n_keys, causal in used if not causal]
    assert all(n_queries % 16 == 0 and n_keys % 32 == 0 and n_keys.bit_count() == 1 for n_queries, n_keys in pieces)
    assert [lengths for *lengths, causal in used if causal] == [[lengths[0]] * 2] * (bool(used) and lengths[0] % 16 == 0)


@pytest.mark.gpu
@pytest.mark.parametrize("lengths", [(1024, 5125), (2048, 14336), (1500, 10000)], ids=str)
@torch.inference_mode()
def test_chunks_on_a_gpu(monkeypatch, lengths):
    monkeypatch.setattr(cuda_attention, "cudnn_from", cuda_attention.PREFIX_BLOCK)
    generator = torch.Generator().manual_seed(0)
    n_queries, n_keys = lengths
    shapes = (1, 4, n_queries, 64), (1, 2, n_keys, 64), (1, 2, n_keys, 64)
    q, keys, values = (torch.randn(shape, generator=generator).cuda().bfloat16() for shape in shapes)
    found = cuda_attention.chunk_attention(q, keys, values)
    expected, _ = part.attention_in_blocks(q.float(), keys.float(), values.float(), True)
    assert (found - expected).norm() < 0.01 * expected.norm()
