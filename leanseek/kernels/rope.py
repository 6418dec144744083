"""Rotary positions: the turning of channel pairs, interleaved or half-split, with stretched frequencies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def inverse_frequencies(dim: int, base: float, scaling: Mapping[str, Any] | None, kind: str | None = "yarn") -> Tensor:
    """Return the angle that each channel pair turns by per position.

    Args:
        dim: channels that are turned (R), even.
        base: rope_theta.
        scaling: None, or the fields of `kind`.
        kind: "yarn": high frequencies are kept, low ones divided by `factor`, with a linear ramp between the pairs
            that turn beta_fast and beta_slow times over the original context; "llama3": the same idea with a ramp
            in the number of turns, from low_freq_factor to high_freq_factor.
    Returns:
        float32, [dim / 2].
    Source: YaRN (arXiv 2309.00071) section 3.2; DeepSeek-V3 inference/model.py; Llama 3.1's rope scaling.
    """
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    plain = 1.0 / base**exponents
    if scaling is None or kind is None:
        return plain
    factor = float(scaling["factor"])
    if kind == "llama3":
        low, high = float(scaling.get("low_freq_factor", 1.0)), float(scaling.get("high_freq_factor", 4.0))
        turns = plain * float(scaling.get("original_max_position_embeddings", 8192)) / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return plain * kept + plain / factor * (1 - kept)
    original = float(scaling.get("original_max_position_embeddings", 4096))

    def pair_turning(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    first = max(math.floor(pair_turning(float(scaling.get("beta_fast", 32)))), 0)
    last = min(math.ceil(pair_turning(float(scaling.get("beta_slow", 1)))), dim - 1)
    # The ramp needs some width even where both ends round to the same pair.
    width = max(last - first, 0.001)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - first) / width).clamp(0, 1)
    return plain / factor * ramp + plain * (1 - ramp)


def yarn_mscale(yarn: Mapping[str, Any] | None, key: str) -> float:
    """Return YaRN's attention temperature 0.1 m ln(factor) + 1 for m = yarn[key]; 1 without YaRN.

    A file may leave either out: DeepSeek's code then has 1 for `mscale` and 0 for `mscale_all_dim`.
    """
    if yarn is None or float(yarn["factor"]) <= 1:
        return 1.0
    mscale = float(yarn.get(key, 1.0 if key == "mscale" else 0.0))
    return 0.1 * mscale * math.log(float(yarn["factor"])) + 1.0


def rotations(positions_T: Tensor, frequencies: Tensor, magnitude: float = 1.0) -> Tensor:
    """Return e^(i position frequency) for every position and pair; complex64, [T, R / 2]."""
    angles = torch.outer(positions_T.to(torch.float32), frequencies)
    return torch.polar(torch.full_like(angles, magnitude), angles)


def rotate(x_THR: Tensor, rotations_TR: Tensor) -> Tensor:
    """Turn each interleaved channel pair (2i, 2i + 1) by its position's angle.

    Args:
        x_THR: [T, H, R], any dtype; the layout DeepSeek stores (pairs side by side).
        rotations_TR: complex64, [T, R / 2].
    Returns:
        Same shape and dtype.
    Source: DeepSeek-V3 inference/model.py; see docs/numerics.md for the half-split twin.
    """
    tokens, heads, width = x_THR.shape
    # Where channels before these are odd in number, pairs do not start at even places: such a view is copied.
    split = x_THR.float().reshape(tokens, heads, width // 2, 2)
    odd = any(stride % 2 for stride in split.stride()[:-1]) or split.storage_offset() % 2
    pairs = torch.view_as_complex(split.clone(memory_format=torch.contiguous_format) if odd else split)
    turned = torch.view_as_real(pairs * rotations_TR.unsqueeze(1)).reshape(tokens, heads, width)
    return turned.to(x_THR.dtype)


def rotate_halves(x_THR: Tensor, rotations_TR: Tensor) -> Tensor:
    """Turn each half-split channel pair (i, i + R / 2) by its position's angle.

    Args:
        x_THR: [T, H, R], any dtype; the layout of V3.2's indexer and of dense students.
        rotations_TR: complex64, [T, R / 2].
    Returns:
        Same shape and dtype.
    """
    first, second = x_THR.float().chunk(2, dim=-1)
    turned = torch.complex(first, second) * rotations_TR.unsqueeze(1)
    return torch.cat((turned.real, turned.imag), dim=-1).to(x_THR.dtype)
