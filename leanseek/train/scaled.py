"""Scaled: matrices of e4m3 numbers with a scale for each tile or block, and their products, as DeepSeek-V3 has them.

On Hopper GPUs torch's scaled product multiplies them. Elsewhere the numbers are multiplied as fp32: products of two
e4m3 numbers are exact in fp32, so that is the recipe itself on any machine, only without its speed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import ScalingType

from leanseek.checkpoint.quantised import BLOCK, LARGEST_E4M3, dequantise_blocks, e4m3_numbers, quantise_blocks

# Rows of tiles, and of scales along what is summed over, are filled up to multiples of these for Hopper's product.
ROWS, SCALES = 16, 4
HOPPER = (9, 0)


@dataclass(frozen=True)
class Scaled:
    """A matrix whose rows are summed over.

    Args:
        codes: e4m3, [rows, columns], filled up with zeros to whole tiles, or to whole blocks.
        scales: float32, what a code is multiplied by; [rows, columns / 128], or [rows / 128, columns / 128].
        shape: rows and columns without what was filled up.
    """

    codes: Tensor
    scales: Tensor
    shape: tuple[int, int]

    @classmethod
    def tiles(cls, x: Tensor) -> Scaled:
        """Round a matrix with one scale for each 128 along its rows; a tile of zeros stays zeros."""
        rows, width = x.shape
        padded = F.pad(x.float(), (0, -width % BLOCK)).view(rows, -1, BLOCK)
        scales = padded.abs().amax(dim=-1) / LARGEST_E4M3
        scales = torch.where(scales == 0, 1.0, scales)
        codes = (padded / scales.unsqueeze(-1)).to(torch.float8_e4m3fn)
        return cls(codes.view(rows, -1), scales, (rows, width))

    @classmethod
    def blocks(cls, weight: Tensor) -> Scaled:
        """Round a matrix with one scale for each 128 x 128."""
        rows, width = weight.shape
        padded = F.pad(weight.float(), (0, -width % BLOCK, 0, -rows % BLOCK))
        return cls(*quantise_blocks(padded), (rows, width))

    @property
    def in_blocks(self) -> bool:
        """Whether a scale is of a block, not of a tile."""
        return self.scales.shape[0] != self.codes.shape[0]

    def transposed(self) -> Scaled:
        """Return a matrix in blocks with rows as columns: its scales stay what they are."""
        assert self.in_blocks, "tiles run along rows"
        return Scaled(self.codes.t().contiguous(), self.scales.t().contiguous(), self.shape[::-1])

    def numbers(self) -> Tensor:
        """Return what the codes stand for; float32, [rows, columns]."""
        rows, columns = self.shape
        if self.in_blocks:
            return dequantise_blocks(self.codes, self.scales)[:rows, :columns]
        tiles = e4m3_numbers(self.codes).view(*self.scales.shape, BLOCK) * self.scales.unsqueeze(-1)
        return tiles.view(rows, -1)[:, :columns]


def product(a: Scaled, b: Scaled, dtype: torch.dtype) -> Tensor:
    """Return a b^T in a dtype, summed in fp32; [rows of a, rows of b].

    Args:
        a: in tiles.
        b: in tiles or in blocks, with as many columns.
        dtype: float32 or bfloat16.
    """
    if _is_hopper(a.codes):
        return _on_hopper(a, b, dtype)
    return F.linear(a.numbers(), b.numbers()).to(dtype)


def _is_hopper(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda" and torch.cuda.get_device_capability(tensor.device) == HOPPER


def _on_hopper(a: Scaled, b: Scaled, dtype: torch.dtype) -> Tensor:
    codes_a, scales_a = _filled(a)
    if b.in_blocks:
        codes_b, recipe = b.codes, ScalingType.BlockWise128x128
        # The number of scales along what is summed over is a multiple of four, and they lie next to each other.
        scales_b = F.pad(b.scales, (0, -b.scales.shape[1] % SCALES)).t()
    else:
        codes_b, scales_b = _filled(b)
        recipe = ScalingType.BlockWise1x128
    out = F.scaled_mm(codes_a, codes_b.t(), scales_a, ScalingType.BlockWise1x128, scales_b, recipe, output_dtype=dtype)
    return out[: a.shape[0], : b.shape[0]]


def _filled(matrix: Scaled) -> tuple[Tensor, Tensor]:
    """Return codes and scales of tiles with more rows of zeros; scales of one column lie next to each other."""
    more = -matrix.codes.shape[0] % ROWS
    codes = F.pad(matrix.codes.view(torch.uint8), (0, 0, 0, more)).view(torch.float8_e4m3fn)
    return codes, F.pad(matrix.scales, (0, 0, 0, more), value=1.0).t().contiguous().t()
