"""Stored weights: products with bf16 and FP8 matrices as checkpoints have them, the same in any company."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from leanseek.checkpoint.quantised import quantise_blocks
from leanseek.errors import KernelError
from leanseek.kernels import native
from leanseek.kernels.experts import experts_reference
from leanseek.kernels.stored import Stored, StoredExperts, stored_experts, stored_linear

KINDS = ("bf16", "fp8")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stored(kind, weight):
    return (
        Stored(weight.bfloat16()) if kind == "bf16" else Stored(*map(torch.Tensor.contiguous, quantise_blocks(weight)))
    )


def mixture(kind, experts=4, dim=100, width=48):
    gates, ups, downs = (
        [stored(kind, random(*shape, seed=seed + e) / 8) for e in range(experts)]
        for shape, seed in (((width, dim), 10), ((width, dim), 20), ((dim, width), 30))
    )
    return StoredExperts(gates, ups, downs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 64), (45, 77), (130, 300), (33, 1100)])
def test_it_is_the_product_with_the_fp32_weight(kind, shape):
    weight, x = stored(kind, random(*shape)), random(7, shape[1], seed=1)
    wanted = F.linear(x, weight.plain())
    # fp32 sums in another order.
    assert torch.allclose(stored_linear(x, weight), wanted, atol=2e-6 * float(wanted.abs().max()), rtol=0)
    assert stored_linear(x[:0], weight).shape == (0, shape[0])
    assert stored_linear(x.bfloat16().view(7, 1, -1), weight).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_in_any_company(kind):
    if native.missing("generic"):
        pytest.skip(native.missing("generic"))
    weight, x = stored(kind, random(50, 1100)), random(200, 1100, seed=1)
    whole = stored_linear(x, weight)
    for rows in (slice(0, 1), slice(3, 6), slice(5, 10), slice(63, 66), slice(70, 200)):
        assert torch.equal(stored_linear(x[rows], weight), whole[rows])
    experts, x = mixture(kind), random(200, 100, seed=2)
    mixing, chosen = random(200, 2, seed=4).abs(), torch.stack((torch.arange(200) % 4, (torch.arange(200) + 1) % 4), 1)
    whole = stored_experts(x, mixing, chosen, experts)
    for rows in (slice(0, 1), slice(5, 12), slice(64, 129)):
        assert torch.equal(stored_experts(x[rows], mixing[rows], chosen[rows], experts), whole[rows])


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_those_of_the_fp32_weights(kind):
    experts, x, mixing = mixture(kind), random(40, 100, seed=3), random(40, 2, seed=4).abs()
    chosen = torch.stack((torch.arange(40) % 3, (torch.arange(40) + 2) % 3), 1)  # expert 3 is nobody's
    gate_up = torch.stack([torch.cat((g.plain(), u.plain())) for g, u in zip(experts.gates, experts.ups, strict=True)])
    wanted = experts_reference(x, mixing, chosen, gate_up, torch.stack([one.plain() for one in experts.downs]))
    assert torch.allclose(stored_experts(x, mixing, chosen, experts), wanted, atol=3e-6, rtol=1e-5)
    with pytest.raises(KernelError, match="an expert that there is not"):
        stored_experts(x, mixing, chosen + 3, experts)


def test_every_fp8_number_is_what_torch_says_and_none_is_none():
    codes = torch.zeros(256, 64, dtype=torch.uint8)
    codes[:, 0] = torch.arange(256, dtype=torch.uint8)
    weight = Stored(codes.view(torch.float8_e4m3fn), torch.ones(2, 1))
    got = stored_linear(F.one_hot(torch.tensor([0]), 64).float(), weight)[0]
    assert torch.equal(got.isnan(), weight.plain()[:, 0].isnan()) and int(got.isnan().sum()) == 2
    assert torch.equal(got.nan_to_num(), weight.plain()[:, 0].nan_to_num())


@pytest.mark.parametrize("kind", KINDS)
def test_memory_need_not_be_aligned(kind):
    weight, x = stored(kind, random(33, 70)), random(3, 70, seed=1)
    size = weight.numbers.element_size()
    moved = torch.empty(weight.numbers.numel() + 1, dtype=weight.numbers.dtype)[1:].view_as(weight.numbers)
    assert moved.copy_(weight.numbers).data_ptr() % 16 == size
    assert torch.equal(stored_linear(x, Stored(moved, weight.scales)), stored_linear(x, weight))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_seen(wrong):
    x = random(3, 64)
    x[1, 40] = wrong
    out = stored_linear(x, stored("bf16", random(20, 64, seed=1)))
    assert not out[1].isfinite().any() and out[[0, 2]].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_flows_back(kind):
    weight, x = stored(kind, random(45, 77)), random(9, 77, seed=1).requires_grad_()
    (mine,) = torch.autograd.grad(stored_linear(x, weight), x, random(9, 45, seed=2))
    assert torch.allclose(mine, random(9, 45, seed=2) @ weight.plain(), atol=1e-4, rtol=1e-5)
