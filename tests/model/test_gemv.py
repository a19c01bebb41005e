"""A matrix times one token as sums over its rows (model/kernels/gemv.py)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.kernels.gemv import GemvMode, gemv, gemv_is_faster

# Rows and columns: a short row in one part, one in three, one that has none, and a long one.
SHAPES = pytest.mark.parametrize("n_rows, n_columns", [(48, 64), (6, 3072), (30, 1039), (16, 6144)])
biased = pytest.mark.parametrize("bias", [False, True])


@SHAPES
@biased
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_what_linear_gives(n_rows, n_columns, bias, dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(1, 1, n_columns), torch.randn(n_rows, n_columns)
    args = (x, weight, torch.randn(n_rows) if bias else None)
    expected = F.linear(*args)
    found = gemv(*(arg if arg is None else arg.to(dtype) for arg in args))
    assert found.shape == expected.shape and found.dtype == dtype
    error = (found.float() - expected).abs().max() / expected.std()
    assert error < (1e-5 if dtype == torch.float32 else 0.05)
    torch.library.opcheck(gemv, args)


def operations(function, *args):
    """What a compiler is given, by name."""
    names = []

    def backend(graph, inputs):
        names.extend(str(node.target) for node in graph.graph.nodes if node.op.startswith("call"))
        return graph

    torch.compile(function, backend=backend, fullgraph=True)(*args)
    return names


def test_linear_computes_by_it_only_where_it_is_faster():
    x, square, tall = torch.randn(1, 1, 64), torch.randn(64, 64), torch.randn(640, 64)
    with GemvMode():
        names = operations(lambda x: (F.linear(x, square), F.linear(x, tall)), x)
    assert sum("gemv" in name for name in names) == 1 and sum("linear" in name for name in names) == 1
    assert gemv_is_faster(64, 64) and not gemv_is_faster(640, 64) and not gemv_is_faster(64, 6000)


def gated(x, weight, bias, cut):
    """What an MLP does before its last matrix."""
    with GemvMode():
        whole = F.linear(x, weight, bias=bias)
        gate, up = cut(whole)
        return F.silu(gate) * up


CUTS = {"split": lambda whole: whole.split([40, 40], dim=-1), "chunk": lambda whole: whole.chunk(2, dim=-1)}


@biased
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("n_columns", [30, 39])
def test_halves_are_products_of_their_own(n_columns, bias, cut):
    torch.manual_seed(0)
    x, weight, b = torch.randn(1, 1, n_columns), torch.randn(80, n_columns), torch.randn(80) if bias else None
    gate, up = F.linear(x, weight, b).chunk(2, dim=-1)
    torch.testing.assert_close(gated(x, weight, b, cut), F.silu(gate) * up)
    compiled = torch.compile(lambda x: gated(x, weight, b, cut), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), F.silu(gate) * up)
    assert operations(lambda x: gated(x, weight, b, cut), x).count("sum") == 2


def test_parts_that_are_no_halves_stay_as_they_are():
    torch.manual_seed(0)
    x, weight = torch.randn(1, 1, 30), torch.randn(80, 30)
    with GemvMode():
        whole = F.linear(x, weight)
        assert all(part._base is whole for part in whole.split([40, 20, 20], dim=-1) + whole.split([30, 50], dim=-1))


@pytest.mark.gpu
@SHAPES
@biased
@torch.inference_mode()
def test_it_is_what_linear_gives_on_a_gpu(n_rows, n_columns, bias):
    x, weight, b = random_on_gpu((1, 1, n_columns), (n_rows, n_columns), (n_rows,))
    expected = F.linear(x.double(), weight.double(), b.double() if bias else None)
    found = gemv(x, weight, b if bias else None)
    assert (found - expected).abs().max() < 0.01 * expected.abs().max()


@pytest.mark.gpu
@biased
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
@torch.inference_mode()
def test_halves_on_a_gpu(bias, cut):
    x, weight, b = random_on_gpu((1, 1, 3584), (80, 3584), (80,))
    weight *= 3584**-0.5
    b = b if bias else None
    gate, up = F.linear(x.double(), weight.double(), b if b is None else b.double()).chunk(2, dim=-1)
    expected = F.silu(gate) * up
    torch._dynamo.reset()
    found = torch.compile(lambda x: gated(x, weight, b, cut), fullgraph=True)(x)
    assert (found - expected).abs().max() < 0.01 * expected.abs().max()


def random_on_gpu(*shapes):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(shape, generator=generator).bfloat16().cuda() for shape in shapes)
