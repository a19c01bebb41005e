"""Weight-only int8: the error of rounding is bounded, and a model of such layers is the float model to that error."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from model_variants import VOCABULARY, base_config, random_tokens, variants
from torch import nn

from model import CausalLM, KVCache, build_model, count_bytes, empty_model
from model.errors import InputError
from model.int8 import Int8Linear, quantise, use_int8
from model.kernels import int8_product
from model.kernels.gemv import GemvMode
from model.kernels.int8_product import int8_linear
from model.session import Session
from weights.config import read_model_config

FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def random_model(config: dict, dtype: torch.dtype = torch.float32) -> CausalLM:
    torch.manual_seed(0)
    model = build_model(read_model_config(config)).to(dtype).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.1)
    return model


def quantised(model: CausalLM) -> CausalLM:
    """A copy with int8 layers."""
    values, model = dict(model.named_parameters()), copy.deepcopy(model)
    use_int8(model)
    for name, module in model.named_modules():
        if isinstance(module, Int8Linear):
            module.quantise(values[f"{name}.weight"])
            if module.bias is not None:
                module.bias.copy_(values[f"{name}.bias"])
    return model


def fused(model: CausalLM) -> CausalLM:
    """A model of int8 layers as it is loaded: matrices that read the same input lie next to each other."""
    weight = model.model.norm.weight
    loaded = empty_model(model.config, weight.dtype, "int8").allocate(weight.device)
    loaded.load_state_dict(model.state_dict())
    return loaded.eval()


def rounded(model: CausalLM) -> CausalLM:
    """A copy of float layers, whose matrices hold what int8 layers hold: what those are to compute."""
    model = copy.deepcopy(model)
    for layer in model.model.layers:
        for linear in (module for module in layer.modules() if isinstance(module, nn.Linear)):
            integers, scale = quantise(linear.weight)
            linear.weight.copy_(integers * scale[:, None])
    return model


@given(
    rows=st.lists(st.lists(st.floats(-1e4, 1e4, width=16), min_size=3, max_size=3), min_size=1, max_size=5),
    factor=st.sampled_from([1.0, 1e-6, 1e3]),
    dtype=st.sampled_from(FLOATS[:2]),
)
def test_no_number_is_off_by_more_than_half_a_step(rows, factor, dtype):
    weight = (torch.tensor(rows) * factor).to(dtype)
    integers, scale = quantise(weight)
    assert integers.dtype == torch.int8 and scale.dtype == torch.float32 and integers.min() >= -127
    error = (integers.double() * scale.double()[:, None] - weight.double()).abs()
    largest = weight.double().abs().amax(dim=1)
    assert (error <= 0.50002 * scale.double()[:, None]).all() and (error <= 0.50003 / 127 * largest[:, None] + 1e-37).all()
    assert torch.equal(integers.abs().amax(dim=1) == 127, largest > 0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n_rows", [1, int8_product.PACKED + 1, int8_product.FEW_ON_CPU, int8_product.FEW_ON_CPU + 1])
def test_a_product_is_that_with_the_rounded_matrix(n_rows, bias, dtype, monkeypatch):
    """Also where the matrix is taken in slabs, of which the last is a smaller one."""
    monkeypatch.setattr(int8_product, "SLAB", 7 * 30 * dtype.itemsize)
    torch.manual_seed(0)
    integers, scale = quantise(torch.randn(20, 30))
    x, b = torch.randn(n_rows, 30).to(dtype)[None], torch.randn(20).to(dtype) if bias else None
    expected = F.linear(x.double(), integers.double() * scale.double()[:, None], b if b is None else b.double())
    found = int8_linear(x, integers, scale, b)
    assert found.shape == (1, n_rows, 20) and found.dtype == dtype
    assert (found - expected).abs().max() < {2: 3e-2, 4: 1e-5}[dtype.itemsize] * expected.std()


@variants()
@torch.inference_mode()
def test_every_family_computes_with_the_rounded_matrices(variant):
    """Also fused, and also in chunks."""
    model = random_model(variant.full_config())
    ids = torch.tensor([random_tokens(variant.prompt)])
    expected, exact = rounded(model)(ids, all_logits=True), model(ids, all_logits=True)
    int8 = quantised(model)
    assert {type(module) for module in int8.model.layers.modules() if "Linear" in type(module).__name__} == {Int8Linear}
    assert isinstance(int8.lm_head, nn.Linear) and int8.model.embed_tokens.weight.is_floating_point()
    assert (int8.lm_head.weight is int8.model.embed_tokens.weight) == int8.config.tie_word_embeddings
    found = int8(ids, all_logits=True)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert 0 < (found - exact).abs().mean() < 0.05 * exact.std()

    int8 = fused(int8)
    torch.testing.assert_close(int8(ids, all_logits=True), found, rtol=1e-3, atol=1e-4)
    cache = KVCache(int8.config, ids.shape[1], device="cpu", dtype=torch.float32)
    in_chunks = [int8(part, cache, all_logits=True) for part in ids.split(7, dim=1)]
    torch.testing.assert_close(torch.cat(in_chunks, dim=1), found, rtol=1e-3, atol=1e-4)


@variants("llama", "llama-tied", "llama-biases", "qwen2", "phi3")
@pytest.mark.parametrize("dtype", FLOATS[:2])
def test_what_it_takes_is_known_beforehand(variant, dtype):
    config = read_model_config(variant.full_config())
    model = empty_model(config, dtype, "int8")
    assert all(parameter.is_meta for parameter in model.parameters())
    assert count_bytes(config, dtype, "int8") == sum(parameter.nbytes for parameter in model.parameters())
    assert (
        count_bytes(config, dtype)
        == sum(parameter.numel() for parameter in build_model(config).parameters()) * dtype.itemsize
    )
    in_layers = sum(parameter.numel() for parameter in model.model.layers.parameters() if parameter.dtype == torch.int8)
    saved = count_bytes(config, dtype) - count_bytes(config, dtype, "int8")
    assert 0.8 * in_layers * (dtype.itemsize - 1) < saved < in_layers * (dtype.itemsize - 1)
    with pytest.raises(InputError, match="weights is 'int4'; choose one of: float, int8"):
        empty_model(config, dtype, "int4")


@variants("llama", "qwen2", "phi3", "llama-biases")
@torch.inference_mode()
def test_the_compiler_takes_products_as_they_are(variant):
    """So it neither expands a matrix nor sums up rows itself, in reading and in decode steps."""
    model = fused(quantised(random_model(variant.full_config())))
    x, calls = torch.randn(1, 1, 64), []

    def backend(graph, inputs):
        calls.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph

    def mlp(x):
        with GemvMode():
            return model.model.layers[0].mlp(x)

    found = torch.compile(mlp, backend=backend, fullgraph=True)(x)
    assert sum("int8_linear" in call for call in calls) == 2
    assert not any(name in call for call in calls for name in ("gemv", "sum", "built-in function linear"))
    torch.testing.assert_close(found, model.model.layers[0].mlp(x))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "dtype, n_outputs, n_inputs, biased",
    [
        (torch.float32, 33, 1039, (1, 64)),
        (torch.float16, 33, 1039, (1, 64)),
        (torch.bfloat16, 96, 6144, (3, 65)),
    ],
)
@torch.inference_mode()
def test_products_on_a_gpu(dtype, n_outputs, n_inputs, biased):
    """By each kernel, with and without a bias, and with rows and inputs that fill no tile.

    Each of dtype, kernel, bias and whether tiles are filled makes another binary, so they are not all crossed.
    """
    torch.manual_seed(0)
    integers, scale = (tensor.cuda() for tensor in quantise(torch.randn(n_outputs, n_inputs)))
    for n_rows in (1, 3, 64, 65):
        x = torch.randn(1, n_rows, n_inputs).to("cuda", dtype)
        bias = torch.randn(n_outputs).to("cuda", dtype) if n_rows in biased else None
        expected = F.linear(x.double(), integers * scale.double()[:, None], bias if bias is None else bias.double())
        found = int8_linear(x, integers, scale, bias)
        assert found.shape == expected.shape and found.dtype == dtype
        assert (found - expected).abs().max() < {2: 2e-2, 4: 1e-3}[dtype.itemsize] * expected.std()


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
@torch.inference_mode()
def test_replies_on_a_gpu(compiled):
    """A chunk, then steps of one row and of three, against the float model with the rounded matrices.

    Compiled, of one row only: other numbers of rows take the same operator, and seconds each to compile.
    """
    model = random_model(base_config("qwen2"), torch.bfloat16).cuda()
    sessions = [Session(each, 400) for each in (rounded(model), fused(quantised(model)))]
    if compiled:
        torch._dynamo.reset()
        sessions[1].model.compile_layers()
    prompts = [random_tokens(n, seed=n) for n in (5, 7, 9)]
    logits = []
    for session in sessions:
        found = [session.prefill(random_tokens(100))]
        step = session.graphs.begin(session.cache, 4)
        found += [step(torch.tensor([token], device="cuda")).clone() for token in (3, 4)]
        if not compiled:
            branches = session._read_branches([40, 60, 100], prompts, 4)[1]
            step = session.graphs.begin(branches, 4)
            found += [step(torch.tensor(tokens, device="cuda")).clone() for tokens in ([1, 2, 3], [4, 5, 6])]
        logits.append(torch.cat(found).float())
    assert logits[0].shape == (3 if compiled else 9, VOCABULARY)
    assert (logits[1] - logits[0]).abs().mean() < 0.1 * logits[0].std()
