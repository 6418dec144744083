"""Packed weights: their layout to the bit, their error, and products that do not care who else is in the batch."""

from __future__ import annotations

import pytest
import torch

import leanseek.kernels.packed as module
from leanseek.errors import KernelError
from leanseek.kernels import native
from leanseek.kernels.experts import experts_reference
from leanseek.kernels.packed import (
    BITS,
    Packed,
    empty_packed,
    pack,
    pack_into,
    packed_experts,
    packed_linear,
    round_activations,
    unpack,
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stacked(gate_up_EFD, down_EDF, bits):
    """Return the packed stacks of experts."""
    experts, double, dim = gate_up_EFD.shape
    width = double // 2
    gate_up = empty_packed(bits, width, dim, experts, halves=2)
    down = empty_packed(bits, dim, width, experts)
    half = gate_up.codes.shape[1] // 2
    for e in range(experts):
        for part, rows in ((slice(0, half), slice(0, width)), (slice(half, None), slice(width, None))):
            pack_into(gate_up_EFD[e, rows], gate_up.codes[e, part], gate_up.scales[e, part])
        pack_into(down_EDF[e], down.codes[e], down.scales[e])
    return gate_up, down


def test_the_layout_is_what_it_is_said_to_be():
    weight = torch.arange(-8.0, 8).repeat(16, 2)  # [16, 32]: codes 0..15 twice
    packed = pack(weight, 4)
    assert packed.codes.shape == (1, 1, 256) and packed.scales.shape == (1, 80)
    for row, column in ((0, 0), (3, 5), (15, 15)):
        j, b = column // 4, column % 4
        byte = int(packed.codes[0, 0, 64 * j + 4 * row + b])
        assert (byte & 15, byte >> 4) == (column, column)
    steps = torch.tensor(packed.scales[0, :64].tolist(), dtype=torch.uint8).view(torch.float32)
    assert torch.equal(steps, torch.full((16,), 1 / 127)) and packed.scales[0, 64:].tolist() == [127] * 16
    assert torch.allclose(unpack(packed), weight, rtol=1e-6)
    # A group that is small beside the others has the scale of one step; one of noughts has none.
    weight = torch.cat((weight * 1000, weight, torch.zeros(16, 32)), 1)
    packed = pack(weight, 4)
    assert packed.scales[0, 64:].view(3, 16).tolist() == [[127] * 16, [1] * 16, [0] * 16]
    assert (unpack(packed) - weight)[:, 32:64].abs().max() <= 4
    weight = torch.arange(16.0)[:, None] * torch.linspace(-1, 1, 32)
    packed = pack(weight, 8)
    assert packed.codes.shape == (1, 1, 512) and packed.scales.shape == (1, 16)
    assert packed.codes[0, 0, 64 * 7 + 4 * 9 + 3] == 127 + 128 and packed.scales[0, 9] == 9 / 127


@pytest.mark.parametrize(("bits", "error"), [(4, 0.09), (8, 0.0085)])
@pytest.mark.parametrize("shape", [(64, 256), (1, 1), (17, 33)])
def test_gaussian_weights_lose_what_they_must(bits, error, shape):
    weight = random(*shape)
    packed = pack(weight, bits)
    assert (packed.outputs, packed.inputs, packed.bits) == (*shape, bits)
    assert unpack(packed).shape == weight.shape
    assert (unpack(packed) - weight).norm() <= error * weight.norm()
    assert torch.equal(pack(weight.bfloat16(), bits).codes, pack(weight.bfloat16().float(), bits).codes)


@pytest.mark.parametrize("bits", BITS)
def test_weights_that_cannot_be_packed_are_refused(bits):
    for wrong in (float("nan"), float("inf")):
        weight = random(20, 40)
        weight[7, 3] = wrong
        with pytest.raises(KernelError, match="not finite"):
            pack(weight, bits)
    assert torch.equal(unpack(pack(torch.zeros(5, 40), bits)), torch.zeros(5, 40))


@pytest.mark.parametrize("bits", BITS)
def test_a_row_is_the_same_in_any_company(bits):
    weight = pack(random(50, 100), bits)
    x = random(129, 100, seed=1)
    whole = packed_linear(x, weight)
    for rows in (slice(0, 1), slice(5, 12), slice(64, 129)):
        assert torch.equal(packed_linear(x[rows], weight), whole[rows])
    gate_up, down = stacked(random(4, 96, 100), random(4, 100, 48, seed=2), bits)
    mixing, chosen = random(129, 2, seed=4).abs(), torch.stack((torch.arange(129) % 4, (torch.arange(129) + 1) % 4), 1)
    whole = packed_experts(x, mixing, chosen, gate_up, down)
    for rows in (slice(0, 1), slice(5, 12), slice(64, 129)):
        assert torch.equal(packed_experts(x[rows], mixing[rows], chosen[rows], gate_up, down), whole[rows])


@pytest.mark.parametrize(("bits", "error"), [(4, 0.16), (8, 0.02)])
def test_experts_are_near_those_of_the_unpacked_weights(bits, error):
    gate_up_EFD, down_EDF = random(6, 80, 96) / 10, random(6, 96, 40, seed=2) / 6
    x, mixing = random(40, 96, seed=3), random(40, 2, seed=4).abs()
    chosen = torch.stack((torch.arange(40) % 6, (torch.arange(40) + 2) % 6), 1)
    gate_up, down = stacked(gate_up_EFD, down_EDF, bits)
    got = packed_experts(x, mixing, chosen, gate_up, down)
    wanted = experts_reference(x, mixing, chosen, gate_up_EFD, down_EDF)
    assert (got - wanted).norm() < error * wanted.norm()
    unpacked = experts_reference(x, mixing, chosen, unpack(gate_up), unpack(down))
    assert (got - unpacked).norm() < 0.015 * unpacked.norm()  # what int8 activations add


def test_a_channel_that_stands_out_costs_its_own_group_alone():
    x = random(8, 256)
    x[:, 7] *= 1000
    weight = pack(random(16, 256, seed=1), 8)
    numbers, scales = round_activations(x)
    back = (numbers * scales.unsqueeze(-1)).flatten(1)
    assert (back - x)[:, 32:].norm() < 0.01 * x[:, 32:].norm()
    assert torch.allclose(packed_linear(x, weight), back @ unpack(weight).T, rtol=1e-4, atol=0.05)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_seen(wrong):
    x = random(3, 64)
    x[1, 40] = wrong
    out = packed_linear(x, pack(random(20, 64, seed=1), 4))
    assert out[1].isnan().all() and out[[0, 2]].isfinite().all()


def test_a_choice_that_is_no_expert_is_refused():
    gate_up, down = stacked(random(2, 64, 32), random(2, 32, 32), 4)
    for wrong in (-1, 2):
        with pytest.raises(KernelError, match="an expert that there is not"):
            packed_experts(random(1, 32), torch.ones(1, 1), torch.tensor([[wrong]]), gate_up, down)


@pytest.mark.parametrize("bits", BITS)
def test_memory_need_not_be_aligned(bits):
    weight = pack(random(33, 70), bits)
    codes = torch.empty(weight.codes.numel() + 1, dtype=torch.uint8)[1:].view_as(weight.codes).copy_(weight.codes)
    assert codes.data_ptr() % 2 == 1
    x = random(3, 70, seed=1)
    moved = Packed(codes, weight.scales, weight.outputs, weight.inputs)
    assert torch.equal(packed_linear(x, moved), packed_linear(x, weight))


@pytest.mark.parametrize("bits", BITS)
def test_any_number_of_threads_gives_the_same(bits):
    if native.missing("generic"):
        pytest.skip(native.missing("generic"))
    weight, x = pack(random(200, 96), bits), random(9, 96, seed=1)
    alone = packed_linear(x, weight)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert all(torch.equal(packed_linear(x, weight), alone) for _ in range(50))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("tile", [64, 1 << 22])
def test_a_gradient_flows_back_through_the_numbers_that_a_weight_stands_for(bits, tile, monkeypatch):
    monkeypatch.setattr(module, "TILE_NUMBERS", tile)
    weight, x = pack(random(45, 77), bits), random(9, 77, seed=1).requires_grad_()
    gradient = random(9, 45, seed=2)
    out = packed_linear(x, weight)
    assert torch.equal(out.detach(), packed_linear(x.detach(), weight))
    (mine,) = torch.autograd.grad(out, x, gradient)
    # Exact but for the order of fp32 sums.
    assert torch.allclose(mine, gradient @ unpack(weight), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_gradients_of_experts_are_near_those_of_the_numbers_that_they_stand_for(bits):
    tokens, dim, width, experts = 40, 64, 48, 6
    plain = random(experts, 2 * width, dim) / dim**0.5, random(experts, dim, width, seed=1) / width**0.5
    gate_up, down = stacked(*plain, bits)
    x, weights = random(tokens, dim, seed=2), torch.rand(tokens, 2, generator=torch.Generator().manual_seed(3))
    chosen = torch.rand(tokens, experts - 1, generator=torch.Generator().manual_seed(4)).argsort(-1)[:, :2]
    gradient = random(tokens, dim, seed=5)
    found = []
    for function, stacks in ((packed_experts, (gate_up, down)), (experts_reference, (unpack(gate_up), unpack(down)))):
        leaves = x.clone().requires_grad_(), weights.clone().requires_grad_()
        out = function(*leaves, chosen, *stacks)
        found.append((out.detach(), *torch.autograd.grad(out, leaves, gradient)))
    for mine, exact, most in zip(*found, (2e-2, 1e-5, 1e-5), strict=True):
        # Forward, activations are rounded to int8 twice; backward nothing is.
        assert (mine - exact).norm() <= most * exact.norm()
