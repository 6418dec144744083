"""RMS normalisation against its equation."""

from __future__ import annotations

import pytest
import torch

from leanseek.kernels.norm import rms_norm


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
