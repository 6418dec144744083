"""Rotary positions against complex numbers by hand, and YaRN's published figures."""

from __future__ import annotations

import cmath
import math

import pytest
import torch

from leanseek.kernels.rope import inverse_frequencies, rotate, rotate_halves, rotations, yarn_mscale

# rope_scaling of DeepSeek-V3's and V2-Lite's own config.json.
V3 = {
    "type": "yarn",
    "factor": 40,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
}
V2_LITE = {**V3, "mscale": 0.707, "mscale_all_dim": 0.707}


def test_each_interleaved_pair_is_a_complex_number_turned_by_its_position():
    generator = torch.Generator().manual_seed(0)
    x_THR = torch.randn(3, 2, 6, generator=generator)
    positions = [0, 5, 77]
    frequencies = inverse_frequencies(6, 10000.0, None)
    turned = rotate(x_THR, rotations(torch.tensor(positions), frequencies))
    for token, position in enumerate(positions):
        for head in range(2):
            for pair in range(3):
                number = complex(*x_THR[token, head, 2 * pair : 2 * pair + 2].tolist())
                number *= cmath.exp(1j * position * 10000.0 ** (-2 * pair / 6))
                got = turned[token, head, 2 * pair : 2 * pair + 2].tolist()
                assert got == pytest.approx([number.real, number.imag], abs=1e-5)


def test_products_depend_on_the_distance_alone():
    generator = torch.Generator().manual_seed(1)
    q, k = torch.randn(2, 1, 1, 8, generator=generator).unbind(0)
    frequencies = inverse_frequencies(8, 10000.0, None)

    def product(at_q: int, at_k: int) -> float:
        q_turned = rotate(q, rotations(torch.tensor([at_q]), frequencies))
        return float((q_turned * rotate(k, rotations(torch.tensor([at_k]), frequencies))).sum())

    assert product(9, 4) == pytest.approx(product(105, 100), abs=1e-4)
    assert product(9, 4) != pytest.approx(product(9, 5), abs=1e-2)


def test_bfloat16_stays_bfloat16_and_is_turned_in_fp32():
    x = torch.randn(4, 1, 4, generator=torch.Generator().manual_seed(2))
    turns = rotations(torch.arange(4), inverse_frequencies(4, 10000.0, None))
    low = rotate(x.bfloat16(), turns)
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, rotate(x.bfloat16().float(), turns).bfloat16())


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones_between_10_and_23():
    plain = inverse_frequencies(64, 10000.0, None)
    stretched = inverse_frequencies(64, 10000.0, V3)
    ratio = stretched / plain
    assert torch.allclose(ratio[:11], torch.ones(11))
    assert torch.allclose(ratio[23:], torch.full((9,), 1 / 40))
    for pair in range(11, 23):
        ramp = (pair - 10) / 13
        assert float(ratio[pair]) == pytest.approx(ramp / 40 + 1 - ramp, rel=1e-5)


@pytest.mark.parametrize(("yarn", "scale"), [(V3, 0.135234), (V2_LITE, 0.114721)])
def test_the_softmax_scale_carries_mscale_squared(yarn, scale):
    assert 192**-0.5 * yarn_mscale(yarn, "mscale_all_dim") ** 2 == pytest.approx(scale, abs=5e-7)


def test_mscale_is_one_without_stretching():
    assert yarn_mscale(None, "mscale") == 1.0
    assert yarn_mscale({**V3, "factor": 1}, "mscale") == 1.0


def test_missing_mscales_mean_what_deepseeks_code_makes_of_them():
    """Its rotary class has mscale=1 and mscale_all_dim=0 as defaults: cos and sin are then scaled."""
    bare = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}
    assert yarn_mscale(bare, "mscale") == pytest.approx(0.1 * math.log(40) + 1)
    assert yarn_mscale(bare, "mscale_all_dim") == 1.0


def test_a_ramp_without_width_is_still_finite():
    """With few channels both ends of the ramp may round to the same pair."""
    frequencies = inverse_frequencies(4, 10000.0, {**V3, "original_max_position_embeddings": 8})
    assert bool(torch.isfinite(frequencies).all()) and bool((frequencies > 0).all())


def test_half_split_pairs_turn_as_interleaved_ones_do():
    x_THR = torch.randn(5, 2, 8, generator=torch.Generator().manual_seed(3))
    turns = rotations(torch.arange(5), inverse_frequencies(8, 10000.0, None))
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    assert torch.allclose(rotate_halves(x_THR[..., order], turns), rotate(x_THR, turns)[..., order], atol=1e-6)


@pytest.mark.parametrize(("before", "width"), [(1, 4), (3, 6), (5, 2)])
def test_pairs_may_start_anywhere(before, width):
    whole = torch.randn(4, 3, before + width, generator=torch.Generator().manual_seed(4))
    turns = rotations(torch.arange(4), inverse_frequencies(width, 100.0, None))
    assert torch.equal(rotate(whole[..., before:], turns), rotate(whole[..., before:].contiguous(), turns))


def test_llama_3_keeps_fast_pairs_and_divides_slow_ones():
    llama = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    plain = inverse_frequencies(128, 500000.0, None)
    stretched = inverse_frequencies(128, 500000.0, llama, "llama3")
    turns = 8192 * plain / (2 * math.pi)
    assert torch.equal(stretched[turns > 4], plain[turns > 4])
    assert torch.allclose(stretched[turns < 1], plain[turns < 1] / 8)
    middle = (turns > 1) & (turns < 4)
    assert bool(middle.any()) and bool((stretched[middle] < plain[middle]).all())
    assert bool((stretched[middle] > plain[middle] / 8).all())
