"""Experts with their gradients by native kernels: against autograd of the definition, and when there is none."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from leanseek.kernels import learning, registry
from leanseek.kernels.invariance import invariant
from leanseek.kernels.learning import learning_experts, learning_experts_reference
from leanseek.model.layers import SwiGLU
from tests.kernels.threads import assert_threads_change_no_bit

KERNELS = [one for one in registry.implementations("learning_experts") if one.name != "reference"]


def inputs(tokens: int, per_token: int, dim: int = 48, width: int = 32, experts: int = 6):
    """Return x, gate and up, down, weights and choices; the last expert is nobody's."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, dim, generator=generator)
    gate_up = torch.randn(experts, 2 * width, dim, generator=generator) / dim**0.5
    down = torch.randn(experts, dim, width, generator=generator) / width**0.5
    weights = torch.rand(tokens, per_token, generator=generator)
    chosen = torch.rand(tokens, experts - 1, generator=generator).argsort(-1)[:, :per_token]
    return x, gate_up, down, weights, chosen


def gradients(function, x, gate_up, down, weights, chosen):
    """Return what a function gives, and the gradients of all that goes in."""
    leaves = [t.clone().requires_grad_() for t in (x, gate_up, down, weights)]
    out = function(leaves[0], (leaves[1],), leaves[2], leaves[3], chosen)
    out_gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    return out.detach(), *torch.autograd.grad(out, leaves, out_gradient)


# A tile's rows, a piece's, and what lies between; strips that are whole and those that are not.
@pytest.mark.parametrize(("tokens", "per_token", "dim", "width"), [(1, 2, 16, 16), (77, 1, 48, 32), (300, 3, 80, 272)])
@pytest.mark.parametrize("one", KERNELS, ids=lambda one: one.name)
def test_every_gradient_is_that_of_the_definition(one, tokens, per_token, dim, width):
    if one.missing:
        pytest.skip(one.missing)
    given = inputs(tokens, per_token, dim, width)
    wanted = gradients(learning_experts_reference, *given)
    for name, want, got in zip(
        ("out", "x", "gate_up", "down", "weights"), wanted, gradients(one.function, *given), strict=True
    ):
        assert float((got - want).abs().max()) < 3e-6 * max(1.0, float(want.abs().max())), name


@pytest.mark.parametrize("one", KERNELS, ids=lambda one: one.name)
def test_the_mlp_is_the_one_expert_of_all(one):
    if one.missing:
        pytest.skip(one.missing)
    x, gate_up, down, *_ = inputs(77, 1, experts=2)
    leaves = [t.clone().requires_grad_() for t in (x, *gate_up[0].chunk(2), down[0])]
    results = []
    for function in (learning_experts_reference, one.function):
        out = function(leaves[0], (leaves[1], leaves[2]), leaves[3], None, None)
        results.append((out, *torch.autograd.grad(out.square().sum(), leaves)))
    for want, got in zip(*results, strict=True):
        assert torch.allclose(got, want, atol=1e-4, rtol=1e-4)


def kernel():
    function = registry.chosen("learning_experts")
    if function is None:
        pytest.skip(registry.choose("learning_experts").reason)
    return function


def test_threads_change_no_bit():
    function, given = kernel(), inputs(300, 2)
    assert_threads_change_no_bit(lambda: gradients(function, *given))


def test_callers_at_once_do_not_meet():
    function, given = kernel(), inputs(200, 2)
    wanted = gradients(function, *given)
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda _: gradients(function, *given), range(12)):
            assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_it_is_left_alone_where_it_does_not_suit():
    kernel()
    x, gate_up, down, weights, chosen = inputs(9, 2)
    whole = [t.requires_grad_() for t in (x, gate_up, down)]

    def taken(x=whole[0], gate_up=whole[1], down=whole[2]) -> bool:
        return learning_experts(x, (gate_up,), down, weights, chosen) is not None

    assert taken()
    assert not taken(x=x.detach()) and not taken(down=down.detach())
    assert not taken(x=x.double()) and not taken(x=x.bfloat16())
    odd = inputs(9, 2, dim=40)
    assert not taken(*(t.requires_grad_() for t in odd[:3]))
    large = learning.MOST_BYTES // (12 * 48) // 16 * 16 + 16
    assert not taken(*(t.requires_grad_() for t in inputs(9, 2, width=large)[:3]))
    with torch.no_grad():
        assert not taken()
    with invariant():
        assert not taken()


def test_a_part_that_is_not_plain_is_asked_itself():
    kernel()
    torch.manual_seed(0)
    mlp = SwiGLU(48, 32)
    for parameter in mlp.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x = torch.randn(5, 48, requires_grad=True)
    assert "Learning" in type(mlp(x).grad_fn).__name__
    mlp.up_proj.forward = lambda given: torch.zeros(given.shape[0], 32)
    assert float(mlp(x).detach().abs().max()) == 0
