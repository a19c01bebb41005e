"""A matrix times one token as sums over its rows (model/product.py)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from model.product import ProductsOfOneToken, product, sums_are_faster

# Rows and columns: a short row in quarters, one that has none, and a long one.
SHAPES = pytest.mark.parametrize("n_rows, n_columns", [(48, 64), (30, 39), (16, 6144)])


@SHAPES
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_what_linear_gives(n_rows, n_columns, bias, dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(1, 1, n_columns), torch.randn(n_rows, n_columns)
    args = (x, weight, torch.randn(n_rows) if bias else None)
    expected = F.linear(*args)
    found = product(*(arg if arg is None else arg.to(dtype) for arg in args))
    assert found.shape == expected.shape and found.dtype == dtype
    error = (found.float() - expected).abs().max() / expected.std()
    assert error < (1e-5 if dtype == torch.float32 else 0.05)
    torch.library.opcheck(product, args)


def test_linear_computes_by_it_only_where_it_is_faster():
    x, square, tall = torch.randn(1, 1, 64), torch.randn(64, 64), torch.randn(640, 64)
    with ProductsOfOneToken():
        calls = torch._dynamo.explain(lambda x: (F.linear(x, square), F.linear(x, tall)))(x).ops_per_graph
    names = [str(operation) for operations in calls for operation in operations]
    assert sum("product" in name for name in names) == 1 and sum("linear" in name for name in names) == 1
    assert sums_are_faster(64, 64) and not sums_are_faster(640, 64) and not sums_are_faster(64, 6000)


@pytest.mark.gpu
@SHAPES
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_it_is_what_linear_gives_on_a_gpu(n_rows, n_columns, bias):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 1, n_columns), (n_rows, n_columns), (n_rows,)]
    x, weight, b = (torch.randn(shape, generator=generator).bfloat16().cuda() for shape in shapes)
    expected = F.linear(x.double(), weight.double(), b.double() if bias else None)
    found = product(x, weight, b if bias else None)
    assert (found - expected).abs().max() < 0.01 * expected.abs().max()
