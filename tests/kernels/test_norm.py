"""RMS normalisation against its equation; the native kernels' gradients against autograd of the definition."""

from __future__ import annotations

import pytest
import torch

from leanseek.kernels import registry
from leanseek.kernels.norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference
from tests.kernels.threads import assert_threads_change_no_bit

OPS = {"rms_norm": rms_norm_reference, "add_rms_norm": add_rms_norm_reference}
KERNELS = [one for op in OPS for one in registry.implementations(op) if one.name != "reference"]
# fp32: other orders of the same sums; bf16: a unit in the last place.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 8e-3}


@pytest.mark.parametrize("shape", [(7, 12), (1, 12), (3, 2, 12), (0, 12)])
def test_it_is_x_over_the_root_mean_square(shape):
    generator = torch.Generator().manual_seed(0)
    x, weight = 3 * torch.randn(shape, generator=generator), torch.randn(12, generator=generator)
    expected = x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight
    assert torch.allclose(rms_norm(x, weight, 1e-6), expected, atol=1e-6)


def test_epsilon_stands_under_the_root():
    x = torch.full((1, 4), 1e-3)
    assert torch.allclose(rms_norm(x, torch.ones(4), 3e-6), torch.full((1, 4), 0.5))


def test_bfloat16_statistics_are_taken_in_fp32():
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    weight = torch.rand(64, generator=torch.Generator().manual_seed(2)).bfloat16()
    out = rms_norm(x, weight, 1e-6)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, rms_norm(x.float(), weight.float(), 1e-6).bfloat16())


def gradients(op, function, shape, dtype=torch.float32, second=False):
    """Return the gradients of all that goes into a norm; or those of the sum of their squares."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(shape, generator=generator) for _ in range(2 if op == "add_rms_norm" else 1)]
    leaves = [t.to(dtype).requires_grad_() for t in (*inputs, torch.randn(shape[-1], generator=generator))]
    out = function(*leaves, 1e-6)
    outs = out if isinstance(out, tuple) else (out,)
    slopes = [torch.randn(shape, generator=generator).to(dtype) for _ in outs]
    found = torch.autograd.grad(outs, leaves, slopes, create_graph=second)
    return torch.autograd.grad(sum(t.square().sum() for t in found), leaves) if second else found


# Rows of no piece, of one, of some and a part of one; widths of whole lanes and not.
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(0, 16), (1, 5), (64, 128), (3, 50, 77), (1000, 48)])
@pytest.mark.parametrize("one", KERNELS, ids=lambda one: f"{one.op} {one.name}")
def test_every_gradient_is_that_of_the_definition(one, shape, dtype):
    if one.missing:
        pytest.skip(one.missing)
    wanted = gradients(one.op, OPS[one.op], shape, dtype)
    for want, got in zip(wanted, gradients(one.op, one.function, shape, dtype), strict=True):
        assert want.shape == got.shape and want.dtype == got.dtype
        most = float(want.abs().max()) if want.numel() else 0.0
        assert torch.allclose(got.float(), want.float(), atol=TOLERANCE[dtype] * max(1, most), rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("one", KERNELS, ids=lambda one: f"{one.op} {one.name}")
def test_a_gradient_has_a_gradient(one):
    if one.missing:
        pytest.skip(one.missing)
    wanted = gradients(one.op, OPS[one.op], (9, 24), second=True)
    for want, got in zip(wanted, gradients(one.op, one.function, (9, 24), second=True), strict=True):
        assert torch.allclose(got, want, atol=1e-4, rtol=1e-4)


def native(op):
    function = registry.chosen(op)
    if function is None:
        pytest.skip(registry.choose(op).reason)
    return function


def test_threads_change_no_bit():
    function = native("add_rms_norm")
    assert_threads_change_no_bit(lambda: gradients("add_rms_norm", function, (1000, 48)))


def test_training_and_drawing_have_the_same_bits():
    native("rms_norm")
    x, more, weight = (torch.randn(shape) for shape in ((70, 48), (70, 48), (48,)))
    drawn = (rms_norm(x, weight, 1e-6), *add_rms_norm(x, more, weight, 1e-6))
    learnt = [t.clone().requires_grad_() for t in (x, more, weight)]
    trained = (rms_norm(learnt[0], learnt[2], 1e-6), *add_rms_norm(*learnt, 1e-6))
    assert all(t.requires_grad and torch.equal(t, other) for t, other in zip(trained, drawn, strict=True))


@pytest.mark.parametrize("used", [0, 1])
def test_one_output_may_go_unused(used):
    native("add_rms_norm")
    x, more, weight = (torch.randn(shape, requires_grad=True) for shape in ((5, 16), (5, 16), (16,)))
    wanted = add_rms_norm_reference(x, more, weight, 1e-6)[used]
    got = add_rms_norm(x, more, weight, 1e-6)[used]
    for want, mine in zip(
        *(torch.autograd.grad(out.square().sum(), (x, more, weight), allow_unused=True) for out in (wanted, got)),
        strict=True,
    ):
        assert (want is None and mine is None) or torch.allclose(mine, want, atol=1e-5)
