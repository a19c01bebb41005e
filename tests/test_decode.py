"""The steps of the graph decoders on the CPU: all but the capture, with FlashAttention's kernels by their definition."""

from __future__ import annotations

from types import SimpleNamespace

import kernels
import pytest
import torch

from model import ModelConfig, build_model, decode
from model.causal_lm import compiled_layers
from model.decode import BranchDecoder, TailDecoder, graph_bound
from model.session import Session

ENDS = [70, 150, 220]
CONFIG = {
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}
architectures = pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM"])


@pytest.fixture
def without_graphs(monkeypatch):
    """The decoders take their steps as they are, and the kernels are stood in for."""
    monkeypatch.setattr(decode, "packed_attention", kernels.packed_attention)
    monkeypatch.setattr(decode, "single_query_attention", kernels.single_query_attention)

    def uncaptured(decoder):
        logits = torch.empty(decoder.rows, CONFIG["vocab_size"])
        return SimpleNamespace(replay=lambda: logits.copy_(decoder._step())), logits

    monkeypatch.setattr(decode.GraphDecoder, "_capture", uncaptured)
    with torch.compiler.set_stance("force_eager"):
        yield


def reading(architecture, **changes):
    """A session that has read the document, and the tokens that it was taken from."""
    generator = torch.Generator().manual_seed(0)
    model = build_model(ModelConfig.from_dict({"architectures": [architecture], **CONFIG, **changes}))
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.2, generator=generator)
    session = Session(model, 600)
    token_ids = torch.randint(0, 100, (300,), generator=generator)
    session.prefill(token_ids[: ENDS[-1]].tolist())
    return session, token_ids


@architectures
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("multiprocessors", [1, 5, 40])  # few pieces of the prefix, or many
@torch.inference_mode()
def test_steps_equal_plain_branches(monkeypatch, without_graphs, architecture, rows, multiprocessors):
    properties = SimpleNamespace(multi_processor_count=multiprocessors)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    session, token_ids = reading(architecture)
    prompts = [token_ids[:9].tolist(), token_ids[20:25].tolist(), token_ids[50:62].tolist()][:rows]
    steps = token_ids[200 : 200 + 8 * rows].view(8, rows)

    def branches():
        return session._read_branches(ENDS[-rows:], prompts, max_tokens=20)[1]

    plain = branches()
    expected = [session.model(tokens[:, None], plain)[:, -1] for tokens in steps]
    decoder = BranchDecoder(session.model, session.cache, 1 << (rows - 1).bit_length())
    decoder.begin(branches())
    found = [decoder(tokens).clone() for tokens in steps]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-4, atol=1e-4)


@architectures
@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@torch.inference_mode()
def test_steps_equal_plain_decoding(without_graphs, architecture, n_kv_heads):
    session, token_ids = reading(architecture, num_key_value_heads=n_kv_heads)
    steps = token_ids[200:208, None]
    expected = [session.model(tokens[:, None], session.cache)[:, -1] for tokens in steps]
    decoder = TailDecoder(session.model, session.cache)
    session.rollback(ENDS[-1])
    for first in (0, 3):  # and begun anew in the midst
        session.cache.advance(first)
        decoder.begin(max_tokens=8)
        found = [decoder(tokens).clone() for tokens in steps[first:]]
        torch.testing.assert_close(torch.stack(found), torch.stack(expected[first:]), rtol=1e-4, atol=1e-4)


def test_few_graphs_serve_all_lengths():
    bounds = {graph_bound(n) for n in range(1, 131_073)}
    assert bounds == {4096, 6144, 8192, 12288, 16384, 24576, 32768, 49152, 65536, 98304, 131072}
    assert all(n <= graph_bound(n) <= max(4096, n * 1.5) for n in range(1, 131_073))


@torch.inference_mode()
def test_one_compilation_stores_into_caches_of_all_capacities():
    torch._dynamo.reset()
    compiled = torch._dynamo.testing.CompileCounter()
    store = torch.compile(decode._store.__wrapped__, backend=compiled, dynamic=False)
    for capacity in (40, 64, 72):
        storage, (k, v) = torch.zeros(3, 2, 1, 4, capacity, 8), torch.randn(2, 2, 4, 1, 8)
        kv, slot = storage[1, :, 0], torch.tensor([3, capacity - 1])
        torch._dynamo.maybe_mark_dynamic(kv, 2)
        store(kv, slot, k, v)
        assert torch.equal(kv[:, :, slot], torch.stack((k, v))[:, :, :, 0].transpose(1, 2))
        assert storage.count_nonzero() == k.count_nonzero() + v.count_nonzero()
    assert compiled.frame_count == 1


@architectures
@torch.inference_mode()
def test_compiled_layers_are_compiled_once_for_all_layers_and_lengths(architecture):
    torch._dynamo.reset()
    session, token_ids = reading(architecture)
    compiled = torch._dynamo.testing.CompileCounter()
    expected = session.prefill(token_ids[:70].tolist())
    session.model.model.run_layer = compiled_layers(compiled)
    counts = []
    for n_first in (30, 37, 64):
        session.rollback(ENDS[-1])
        session.prefill(token_ids[:n_first].tolist())
        torch.testing.assert_close(session.prefill(token_ids[n_first:70].tolist()), expected, rtol=1e-4, atol=1e-4)
        counts.append(compiled.frame_count)
    assert counts[0] == counts[-1] <= 4  # before attention, and after it in each of the functions that it is called from


@pytest.mark.gpu
@architectures
@torch.inference_mode()
def test_compiled_layers_on_a_gpu(architecture):
    config = ModelConfig.from_dict({"architectures": [architecture], **CONFIG})
    model = build_model(config).to("cuda", torch.bfloat16)
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.2)
    session, token_ids = Session(model, 600), torch.arange(90).tolist()
    expected = session.prefill(token_ids).float()
    model.compile_layers()
    for n_first in (30, 40):
        session.rollback(0)
        session.prefill(token_ids[:n_first])
        found = session.prefill(token_ids[n_first:]).float()
        assert (found - expected).abs().mean() < 0.1 * expected.std()
    rows = session.choose([[1, 2, 3], [4, 5]], [1], [2])
    model.model.run_layer = decode.run_eagerly
    assert rows == pytest.approx(session.choose([[1, 2, 3], [4, 5]], [1], [2]), abs=0.1)
