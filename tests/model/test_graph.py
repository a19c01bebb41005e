"""The steps of the graph decoder on the CPU: all but the capture and the kernels that the compiler makes."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from types import SimpleNamespace

import kernels_by_definition
import pytest
import torch
from model_variants import (
    VARIANT,
    VOCABULARY,
    attending_variants,
    plain_variants,
    random_tokens,
    tiny_model,
)

from model import build_model, graph, transformer
from model.decode import plain_step
from model.kernels import flash_rows, flex_rows
from model.sampling import Sampler
from model.session import Session
from model.transformer import run_layer
from weights.config import read_model_config

ENDS = [70, 150, 220]


@pytest.fixture
def uncaptured(monkeypatch):
    """Steps are taken as they come, with FlashAttention by its definition."""

    def capture(decoder):
        decoder.logits = torch.empty(len(decoder.tokens), VOCABULARY)
        decoder.graph = SimpleNamespace(replay=lambda: decoder.logits.copy_(decoder._step()))

    monkeypatch.setattr(graph.GraphDecoder, "_capture", capture)
    monkeypatch.setattr(flash_rows, "varlen_attention", kernels_by_definition.varlen_attention)


@pytest.fixture
def compilations(uncaptured, monkeypatch):
    """Layers are compiled as far as graphs of operations, which are counted."""
    counter = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(flex_rows._layer.__wrapped__, backend=counter, dynamic=False, fullgraph=True)

    def layer(layer, x, rotary, kv, state, options):
        # Off the GPU attention looks at all keys and only then at the mask; so here is what the kernel would look at.
        blocks = state.blocks[: state.n_blocks.item()]
        assert blocks.tolist() == list(range(state.n_blocks.item()))
        assert state.slots.max() < len(blocks) * flex_rows.KEY_BLOCK
        return compiled(layer, x, rotary, kv, state, options)

    monkeypatch.setattr(flex_rows, "_layer", layer)
    return counter


@pytest.fixture(params=[False, True], ids=["as-it-is", "compiled"])
def compiled(request):
    """Whether the steps are captured as they are, or compiled first."""
    request.getfixturevalue("compilations" if request.param else "uncaptured")
    return request.param


def reading(variant, compiled, capacity=600, **changes):
    """A session that has read the document, and the tokens that it was taken from.

    changes: to config.json
    """
    variant = VARIANT[variant] if isinstance(variant, str) else variant
    model = tiny_model(replace(variant, config=variant.config | changes), planned=512)
    session, token_ids = Session(model, capacity), torch.tensor(random_tokens(300))
    session.prefill(token_ids[: ENDS[-1]].tolist())
    model.compiled = compiled  # from here on: only decode steps are of interest
    return session, token_ids


@contextmanager
def as_written(model):
    """Prompts are read by the layers as they are written."""
    compiled, model.compiled = model.compiled, False
    yield
    model.compiled = compiled


def check_branches(session, token_ids, rows):
    """Rows decoded as a graph would, against the plain way."""
    prompts = [token_ids[:9].tolist(), token_ids[20:25].tolist(), token_ids[50:62].tolist()][:rows]
    steps = token_ids[200 : 200 + 8 * rows].view(8, rows)

    def branches():
        with as_written(session.model):
            return session._read_branches(ENDS[-rows:], prompts, max_tokens=20)[1]

    plain = branches()
    expected = [session.model(tokens[:, None], plain, run=run_layer)[:, -1] for tokens in steps]
    step = session.graphs.begin(branches(), 20)
    found = [step(tokens).clone() for tokens in steps]
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-4, atol=1e-4)


def check_tail(session, token_ids):
    """The cache continued as a graph would, against the plain way; and begun anew in the midst."""
    steps = token_ids[200:208, None]
    expected = [session.model(tokens[:, None], session.cache, run=run_layer)[:, -1] for tokens in steps]
    session.rollback(ENDS[-1])
    for first in (0, 3):
        session.cache.advance(first)
        step = session.graphs.begin(session.cache, 8)
        found = [step(tokens).clone() for tokens in steps[first:]]
        torch.testing.assert_close(torch.stack(found), torch.stack(expected[first:]), rtol=1e-4, atol=1e-4)
    session.rollback(ENDS[-1])


@attending_variants
@torch.inference_mode()
def test_steps_equal_plain_decoding(uncaptured, variant):
    session, token_ids = reading(variant, False)
    check_tail(session, token_ids)
    for n_rows in (1, 3):
        check_branches(session, token_ids, n_rows)


@torch.inference_mode()
def test_a_compiled_step_of_one_branch(compilations):
    check_branches(*reading("llama", True), 1)


@torch.inference_mode()
def test_rows_are_shared_out_among_decoders(compiled, monkeypatch):
    monkeypatch.setattr(flex_rows, "max_rows", lambda config: 2)
    monkeypatch.setattr(graph, "MAX_ROWS", 2)
    session, token_ids = reading("llama", compiled)
    check_branches(session, token_ids, 3)
    assert sorted(session.graphs.decoders) == [(1, 2, compiled), (2, 0, compiled)]


@pytest.mark.parametrize("piece", [16, 64, 1000])
@torch.inference_mode()
def test_a_prefix_in_pieces(uncaptured, monkeypatch, piece):
    for name in ("SHORTEST_PIECE", "LONGEST_PIECE"):
        monkeypatch.setattr(flash_rows, name, piece)
    session, token_ids = reading("llama", False)
    check_branches(session, token_ids, 3)
    check_tail(session, token_ids)


@torch.inference_mode()
def test_free_bytes_that_are_no_numbers(compiled):
    """The compiled step reads whole blocks of keys before it hides some, so NaN there is NaN; the others do not look."""
    session, token_ids = reading("llama", compiled)
    session.cache.storage[:, :, :, session.length :] = float("nan")
    steps = token_ids[200:203, None]
    step = session.graphs.begin(session.cache, len(steps))
    found = torch.stack([step(tokens).clone() for tokens in steps])
    expected = [session.model(tokens[:, None], session.cache, run=run_layer)[:, -1] for tokens in steps]
    assert torch.stack(expected).isfinite().all()
    assert found.isnan().all() if compiled else torch.allclose(found, torch.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("max_tokens", [1, 3, 6])  # fewer than the steps ahead, as many, and more
@plain_variants
@torch.inference_mode()
def test_working_ahead_gives_the_same_tokens_and_cache(uncaptured, variant, max_tokens):
    session, token_ids = reading(variant, False)
    prompt = token_ids[:5].tolist()

    def reply(use_graphs, stop_ids=frozenset(), taken=None):
        session.rollback(ENDS[-1])
        session.use_graphs = use_graphs
        tokens = session.generate(prompt, max_tokens, stop_ids, Sampler())
        found = list(islice(tokens, taken))
        tokens.close()
        return found

    whole = reply(use_graphs=False)
    assert len(whole) == max_tokens
    for options in [{}, {"taken": 1}, {"taken": max(max_tokens - 1, 1)}, {"stop_ids": frozenset(whole[-1:])}]:
        found = reply(use_graphs=True, **options)
        assert found == reply(use_graphs=False, **options) == whole[: len(found)]
        reply(use_graphs=True, **options)
        n_known = session.length - ENDS[-1] - len(prompt)
        assert max(len(found) - 1, 0) <= n_known <= len(found)
        known = session.cache.storage[..., : session.length, :].clone()
        session.rollback(ENDS[-1])
        session.prefill(prompt + found[:n_known])
        torch.testing.assert_close(known, session.cache.storage[..., : session.length, :], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_plain_decoding_reads_no_token_that_is_not_asked_for(monkeypatch):
    session, token_ids = reading("llama", False)
    read, forward = [], session.model.forward
    monkeypatch.setattr(session.model, "forward", lambda ids, *more: (read.append(ids.shape[1]), forward(ids, *more))[1])
    assert list(session.generate(token_ids[:5].tolist(), 9, frozenset(range(100)), Sampler())) == []
    assert read == [5] and session.length == ENDS[-1] + 5


@torch.inference_mode()
def test_what_does_not_fit_is_refused(compiled):
    session, _ = reading("llama", compiled, capacity=ENDS[-1] + 5)
    session.graphs.begin(session.cache, 5)
    with pytest.raises(ValueError, match="has 225 positions and cannot take tokens up to position 226"):
        session.graphs.begin(session.cache, 6)


@torch.inference_mode()
def test_a_reply_that_is_left_and_closed_late_moves_no_pointer(uncaptured):
    session, token_ids = reading("llama", False)
    session.use_graphs = True
    reply = session.generate(token_ids[:5].tolist(), 9, frozenset(), Sampler())
    next(reply)
    session.rollback(ENDS[0])
    session.prefill(token_ids[:60].tolist())
    reply.close()
    assert session.length == ENDS[0] + 60


@pytest.mark.parametrize(
    "variant, heads",  # of queries and of keys
    [("llama", (4, 2)), ("llama", (6, 2)), ("phi3", (4, 4)), ("qwen2", (6, 2))],
)
@torch.inference_mode()
def test_steps_know_how_heads_are_grouped(compiled, variant, heads):
    sizes = {"hidden_size": 16 * heads[0], "num_attention_heads": heads[0], "num_key_value_heads": heads[1]}
    check_tail(*reading(variant, compiled, **sizes))


@pytest.mark.parametrize("variant, window", [("phi3-window", 3), ("qwen2-window", 60), ("capped-window", 15)])
@torch.inference_mode()
def test_steps_know_sliding_windows_and_soft_caps(compiled, variant, window):
    """Windows within a row's own tokens and beyond them."""
    session, token_ids = reading(variant, compiled, sliding_window=window)
    assert window in session.model.config.sliding_windows
    check_branches(session, token_ids, 3)
    check_tail(session, token_ids)


@plain_variants
@torch.inference_mode()
def test_one_compilation_serves_all_layers_of_a_kind_and_all_capacities(compilations, variant):
    for capacity in (600, 1000):
        session, token_ids = reading(variant, True, capacity)
        check_tail(session, token_ids)
    n_kinds = len({layer.self_attn.options for layer in session.model.model.layers})
    assert compilations.frame_count == n_kinds
    check_branches(session, token_ids, 3)
    assert compilations.frame_count == 2 * n_kinds  # other numbers of rows need their own


@plain_variants
@torch.inference_mode()
def test_compiled_layers_are_compiled_once_for_all_layers_and_lengths(monkeypatch, variant):
    torch._dynamo.reset()
    session, token_ids = reading(variant, False)
    compiled = torch._dynamo.testing.CompileCounter()
    expected = session.prefill(token_ids[:70].tolist())
    run = transformer.compiled_layers(compiled)
    monkeypatch.setattr(transformer, "compiled_layers", lambda: run)
    session.model.compile_layers()
    counts = []
    for n_first in (30, 37, 64):
        session.rollback(ENDS[-1])
        session.prefill(token_ids[:n_first].tolist())
        torch.testing.assert_close(session.prefill(token_ids[n_first:70].tolist()), expected, rtol=1e-4, atol=1e-4)
        counts.append(compiled.frame_count)
    assert counts[0] == counts[-1] <= 4  # before attention, and after it in each of the functions that it is called from


@pytest.mark.gpu
@plain_variants
@torch.inference_mode()
def test_compiled_layers_on_a_gpu(variant):
    model = tiny_model(variant, planned=512, dtype=torch.bfloat16, device="cuda")
    session, token_ids = Session(model, 600), torch.arange(90).tolist()
    expected = session.prefill(token_ids).float()
    model.compile_layers()
    for n_first in (30, 40):
        session.rollback(0)
        session.prefill(token_ids[:n_first])
        found = session.prefill(token_ids[n_first:]).float()
        assert (found - expected).abs().mean() < 0.1 * expected.std()
    rows = session.probability([[1, 2, 3], [4, 5]], [1], [2])
    model.compiled = False
    assert rows == pytest.approx(session.probability([[1, 2, 3], [4, 5]], [1], [2]), abs=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("n_rows", [1, 20])
@torch.inference_mode()
def test_many_keys_and_rows_on_a_gpu(monkeypatch, heads, n_rows, compiled):
    monkeypatch.setattr(flex_rows, "max_rows", lambda config: 16)
    sizes = {"hidden_size": 32 * heads[0], "num_attention_heads": heads[0], "num_key_value_heads": heads[1]}
    config = VARIANT["llama"].full_config(**sizes, max_position_embeddings=4096)
    model = build_model(read_model_config(config)).to("cuda", torch.bfloat16)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(0.0, 0.1)
    session = Session(model, 3000)
    session.prefill(torch.randint(0, 100, (1500,)).tolist())
    ends = torch.linspace(200, 1500, n_rows).int().tolist()
    prompts = [torch.randint(0, 100, (5 + row % 3,)).tolist() for row in range(n_rows)]
    steps = torch.randint(0, 100, (6, n_rows), device="cuda")

    def logits(step_of):
        step = step_of(session._read_branches(ends, prompts, 8)[1])
        return torch.stack([step(tokens).float().clone() for tokens in steps])

    expected = logits(partial(plain_step, model))
    model.compiled = compiled
    found = logits(lambda branches: session.graphs.begin(branches, 8))
    assert (found - expected).abs().mean() < 0.1 * expected.std()
