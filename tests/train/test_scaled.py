"""Scaled matrices: rounding is the recipe's, and Hopper's product is given what torch says that it wants."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.functional import ScalingType

import leanseek.train.scaled as module
from leanseek.train.scaled import Scaled, product


def nearest_e4m3(x: np.ndarray) -> np.ndarray:
    """Round to the nearest of all e4m3 numbers, found by listing them."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double().numpy()
    numbers = np.unique(codes[np.isfinite(codes)])
    at = np.abs(x[..., None] - numbers).argmin(-1)
    return numbers[at]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers of very different size from row to row."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * 10 ** (4 * torch.rand(shape[0], 1, generator=generator) - 2)


@pytest.mark.parametrize("width", [1, 127, 128, 300])
def test_tiles_are_rounded_each_by_its_own_largest_number(width):
    x = random(3, width)
    x[1] = 0
    got = Scaled.tiles(x).numbers()
    assert torch.equal(got[1], x[1]) and got.shape == x.shape
    for row in (0, 2):
        for start in range(0, width, 128):
            tile = x[row, start : start + 128].numpy()
            scale = np.float32(np.abs(tile).max()) / np.float32(448)
            # Ties between two neighbours may fall either way here: half a step is what both are off by.
            wanted = nearest_e4m3((tile / scale).astype(np.float64)) * np.float64(scale)
            off = np.abs(got[row, start : start + 128].double().numpy() - tile)
            assert np.all(off <= np.abs(wanted - tile) + 1e-6 * np.abs(tile).max())  # the scale is an fp32 number


@pytest.mark.parametrize("shape", [(1, 1), (130, 129), (128, 256)])
def test_a_transposed_matrix_in_blocks_has_the_same_numbers(shape):
    matrix = Scaled.blocks(random(*shape))
    assert matrix.in_blocks and torch.equal(matrix.transposed().numbers(), matrix.numbers().t())


def as_torch_wants(a, b, scale_a, recipe_a, scale_b, recipe_b, output_dtype):
    """Multiply as `F.scaled_mm` does on Hopper, and check what it checks there: sizes, and how all lies in memory."""
    assert a.dtype == b.dtype == torch.float8_e4m3fn
    assert a.is_contiguous() and b.t().is_contiguous()
    (rows, summed), columns = a.shape, b.shape[1]
    assert summed % 128 == 0 and rows % 4 == 0 and columns % 16 == 0
    assert recipe_a == ScalingType.BlockWise1x128
    assert scale_a.shape == (rows, summed // 128) and scale_a.stride(0) == 1
    if recipe_b == ScalingType.BlockWise1x128:
        assert scale_b.shape == (columns, summed // 128) and scale_b.stride(0) == 1
        each_b = scale_b
    else:
        assert recipe_b == ScalingType.BlockWise128x128 and columns % 128 == 0
        filled = -(-summed // 128 // 4) * 4
        assert scale_b.shape == (filled, columns // 128) and scale_b.stride(0) == 1
        each_b = scale_b.t()[:, : summed // 128].repeat_interleave(128, 0)
    left = a.float() * scale_a.repeat_interleave(128, 1)
    right = b.t().float() * each_b.repeat_interleave(128, 1)
    return (left @ right.t()).to(output_dtype)


@pytest.mark.parametrize("shape", [(5, 200, 130), (129, 128, 64), (1, 7, 3), (16, 1100, 128)])
@pytest.mark.parametrize("second", [Scaled.tiles, Scaled.blocks])
def test_hopper_is_given_the_same_matrices(shape, second, monkeypatch):
    rows, summed, columns = shape
    a, b = Scaled.tiles(random(rows, summed)), second(random(columns, summed, seed=1))
    wanted = product(a, b, torch.float32)
    monkeypatch.setattr(module, "_is_hopper", lambda tensor: True)
    monkeypatch.setattr(F, "scaled_mm", as_torch_wants)
    got = product(a, b, torch.float32)
    assert got.shape == wanted.shape == (rows, columns)
    # The same fp32 products, summed in another order over some zeros more.
    assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(5, 200, 130), (4096, 7168, 2048), (129, 128, 64)])
@pytest.mark.parametrize("second", [Scaled.tiles, Scaled.blocks])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hopper_multiplies_as_the_emulation_does(shape, second, dtype, monkeypatch):
    if torch.cuda.get_device_capability() != module.HOPPER:
        pytest.skip("scaled products by tiles are Hopper's")
    rows, summed, columns = shape
    a, b = Scaled.tiles(random(rows, summed).cuda()), second(random(columns, summed, seed=1).cuda())
    got = product(a, b, dtype).double()
    wanted = a.numbers().double() @ b.numbers().double().t()
    scale = a.numbers().double().norm(dim=1)[:, None] * b.numbers().double().norm(dim=1)
    # Tensor cores sum a tile with some 14 bits, and bf16 keeps 8 of the outcome.
    assert float(((got - wanted) / scale).abs().max()) < (2e-2 if dtype == torch.bfloat16 else 1e-3)
