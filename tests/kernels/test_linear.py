"""The matrix product, whichever library does it, against the definition."""

from __future__ import annotations

import pytest
import torch

import leanseek.kernels.linear as module
from leanseek.kernels.invariance import invariant
from leanseek.kernels.linear import LEAST_ROWS, linear, linear_reference, onednn_is_faster, product, report


@pytest.fixture(params=[False, True], ids=["default", "onednn"])
def library(request, monkeypatch):
    """Run a test both ways, where this torch has oneDNN at all (every CPU build has)."""
    assert hasattr(torch.ops.mkldnn, "_linear_pointwise")
    monkeypatch.setattr(module, "onednn_is_faster", lambda: request.param)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [0, 1, 7, LEAST_ROWS - 1, LEAST_ROWS, 129])
def test_forward_and_gradients_are_the_definitions(library, rows):
    results = []
    for op in (linear_reference, linear):
        x, weight = draw(rows, 12).requires_grad_(), draw(20, 12, seed=1).requires_grad_()
        out = op(x, weight)
        out.backward(draw(rows, 20, seed=2))
        results.append((out.detach(), x.grad, weight.grad))
    for name, expected, got in zip(("out", "x", "weight"), *results, strict=True):
        assert torch.allclose(got, expected, atol=1e-4), name
    with torch.no_grad():
        assert torch.allclose(linear(draw(rows, 12), draw(20, 12, seed=1)), results[0][0], atol=1e-4)


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_either_input_may_be_without_gradient(library, frozen):
    x, weight = draw(64, 12).requires_grad_(frozen != "x"), draw(20, 12, seed=1).requires_grad_(frozen != "weight")
    linear(x, weight).sum().backward()
    assert (x.grad is None) == (frozen == "x") and (weight.grad is None) == (frozen == "weight")


@pytest.mark.parametrize("rows", [5, 64])
def test_transposed_and_sliced_inputs_are_fine(library, rows):
    wide, weight = draw(rows, 30), draw(12, 20, seed=1)
    assert torch.allclose(linear(wide[:, 4:16], weight.t()), wide[:, 4:16] @ weight, atol=1e-4)
    assert torch.allclose(product(draw(12, rows).t(), weight.t()), draw(12, rows).t() @ weight, atol=1e-4)


def test_other_shapes_and_dtypes_take_the_plain_way(library):
    assert torch.equal(linear(draw(2, 40, 12), draw(20, 12, seed=1)), draw(2, 40, 12) @ draw(20, 12, seed=1).T)
    assert linear(draw(64, 12).bfloat16(), draw(20, 12).bfloat16()).dtype == torch.bfloat16


def test_the_reference_can_be_asked_for(monkeypatch):
    onednn_is_faster.cache_clear()
    monkeypatch.setenv("LEANSEEK_KERNELS", "reference")
    assert not onednn_is_faster() and report() == "torch's default"
    onednn_is_faster.cache_clear()
    monkeypatch.delenv("LEANSEEK_KERNELS")
    assert report() == ("oneDNN (AVX-512, an AMD processor)" if onednn_is_faster() else "torch's default")


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 64), (192, 64), (320, 128), (512, 192), (1024, 256)])
def test_an_invariant_row_is_the_same_beside_many_and_few(library, inputs, outputs):
    x, weight = draw(151, inputs), draw(outputs, inputs, seed=1)
    with invariant():
        among_many = linear(x, weight)
        for rows in (1, 3, 5, 8, 12, 13, 40):
            assert torch.equal(linear(x[:rows], weight), among_many[:rows])
