"""The sorted loop over experts and its hand-written gradient against the definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from leanseek.kernels.experts import experts_reference, routed_experts

D, FF = 12, 10


def inputs(tokens: int, experts: int, per_token: int, unused: int, seed: int = 0, dtype: torch.dtype = torch.float32):
    """Return x, weights, choices and both stacks; the last `unused` experts are chosen by nobody."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, D, generator=generator, dtype=dtype)
    weights = torch.rand(tokens, per_token, generator=generator, dtype=torch.float32)
    chosen = torch.stack(
        [torch.randperm(experts - unused, generator=generator)[:per_token] for _ in range(tokens)]
    ).reshape(tokens, per_token)
    gate_up = torch.randn(experts, 2 * FF, D, generator=generator, dtype=dtype) / D**0.5
    down = torch.randn(experts, D, FF, generator=generator, dtype=dtype) / FF**0.5
    return x, weights, chosen, gate_up, down


def test_the_definition_is_a_weighted_sum_of_small_networks():
    x, weights, chosen, gate_up, down = inputs(5, 4, 2, 0)
    expected = torch.zeros(5, D)
    for token in range(5):
        for choice in range(2):
            expert = int(chosen[token, choice])
            gate, up = gate_up[expert, :FF] @ x[token], gate_up[expert, FF:] @ x[token]
            expected[token] += weights[token, choice] * (down[expert] @ (F.silu(gate) * up))
    assert torch.allclose(experts_reference(x, weights, chosen, gate_up, down), expected, atol=1e-6)


@pytest.mark.parametrize("unused", [0, 3])
@pytest.mark.parametrize("per_token", [1, 3])
@pytest.mark.parametrize("tokens", [1, 7, 32, 129])
def test_forward_and_gradients_are_the_definitions(tokens, per_token, unused):
    x, weights, chosen, gate_up, down = inputs(tokens, 8, per_token, unused)
    out_gradient = torch.randn(tokens, D, generator=torch.Generator().manual_seed(9))
    results = []
    for op in (experts_reference, routed_experts):
        leaves = [t.clone().requires_grad_() for t in (x, weights, gate_up, down)]
        out = op(leaves[0], leaves[1], chosen, leaves[2], leaves[3])
        out.backward(out_gradient)
        results.append((out.detach(), *(leaf.grad for leaf in leaves)))
    for name, expected, got in zip(("out", "x", "weights", "gate_up", "down"), *results, strict=True):
        assert torch.allclose(got, expected, atol=2e-5, rtol=1e-4), name
    with torch.no_grad():
        assert torch.allclose(routed_experts(x, weights, chosen, gate_up, down), results[0][0], atol=2e-5)


def test_experts_that_nobody_chose_get_a_gradient_of_zero():
    x, weights, chosen, gate_up, down = inputs(7, 8, 2, 3)
    gate_up.requires_grad_()
    routed_experts(x, weights, chosen, gate_up, down).sum().backward()
    assert gate_up.grad is not None
    assert bool((gate_up.grad[5:] == 0).all()) and bool((gate_up.grad[:5] != 0).any())


def test_no_tokens_give_no_rows():
    x, weights, chosen, gate_up, down = inputs(3, 4, 2, 0)
    assert routed_experts(x[:0], weights[:0], chosen[:0], gate_up, down).shape == (0, D)


@pytest.mark.parametrize("tokens", [1, 7])
@pytest.mark.parametrize("gradient", [False, True])
def test_bfloat16_stays_near_fp32(tokens, gradient):
    x, weights, chosen, gate_up, down = inputs(tokens, 8, 2, 0)
    low = [t.bfloat16() for t in (x, gate_up, down)]
    low[0].requires_grad_(gradient)
    out = routed_experts(low[0], weights, chosen, low[1], low[2])
    assert out.dtype == torch.bfloat16
    expected = experts_reference(x, weights, chosen, gate_up, down)
    assert float((out.detach().float() - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize("frozen", range(4))
def test_any_input_may_be_without_gradient(frozen):
    """Frozen experts, or a router that is not trained: the rest still learn."""
    x, weights, chosen, gate_up, down = inputs(7, 4, 2, 0)
    leaves = [t.requires_grad_(i != frozen) for i, t in enumerate((x, weights, gate_up, down))]
    routed_experts(leaves[0], leaves[1], chosen, leaves[2], leaves[3]).square().sum().backward()
    assert [leaf.grad is not None for leaf in leaves] == [i != frozen for i in range(4)]
