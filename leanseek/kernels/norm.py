"""RMS normalisation: x / sqrt(mean(x^2) + eps) * weight, computed in fp32; and with a residual that is added first."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from leanseek.kernels import native
from leanseek.kernels.registry import chosen, native_implementation, reference


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Normalise the last dimension to unit root mean square and scale it.

    Args:
        x_TD: activations, any leading shape; fp32 or bf16.
        weight_D: scale per channel.
        eps: added to the mean square.
    Returns:
        Same shape and dtype as `x_TD`; the statistics are taken in fp32.
    Source: Zhang and Sennrich 2019 (arXiv 1910.07467), as used by DeepSeek-V3.
    """
    if _suits(x_TD, weight_D) and (function := chosen("rms_norm")) is not None:
        out: Tensor = function(x_TD, weight_D, eps)
        return out
    return rms_norm_reference(x_TD, weight_D, eps)


def add_rms_norm(x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Add to the residual stream and normalise the sum.

    Args:
        x_TD: what a block's part computed.
        residual_TD: the stream, of the same shape and dtype.
        weight_D, eps: as of `rms_norm`.
    Returns:
        The sum, rounded to its dtype, and that sum normalised.
    """
    if (
        _suits(x_TD, weight_D)
        and residual_TD.dtype == x_TD.dtype
        and residual_TD.shape == x_TD.shape
        and not (torch.is_grad_enabled() and residual_TD.requires_grad)
        and (function := chosen("add_rms_norm")) is not None
    ):
        both: tuple[Tensor, Tensor] = function(x_TD, residual_TD, weight_D, eps)
        return both
    return add_rms_norm_reference(x_TD, residual_TD, weight_D, eps)


@reference("rms_norm")
def rms_norm_reference(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Compute `rms_norm` in plain torch; its definition."""
    if x_TD.dtype == torch.float32:
        return F.rms_norm(x_TD, weight_D.shape, weight_D, eps)
    return F.rms_norm(x_TD.float(), weight_D.shape, weight_D.float(), eps).to(x_TD.dtype)


@reference("add_rms_norm")
def add_rms_norm_reference(x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Compute `add_rms_norm` in plain torch; its definition."""
    sum_TD = residual_TD + x_TD
    return sum_TD, rms_norm_reference(sum_TD, weight_D, eps)


@native_implementation("rms_norm")
def _rms_norm(variant: str, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    x_TD, weight_D = x_TD.contiguous(), weight_D.contiguous()
    out_TD = torch.empty_like(x_TD)
    width = weight_D.shape[0]
    code = native.type_code(x_TD.dtype)
    native.call(
        "rms_norm", variant, code, x_TD, None, weight_D, None, out_TD, x_TD.numel() // max(width, 1), width, eps
    )
    return out_TD


@native_implementation("add_rms_norm")
def _add_rms_norm(
    variant: str, x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    x_TD, residual_TD, weight_D = x_TD.contiguous(), residual_TD.contiguous(), weight_D.contiguous()
    sum_TD, out_TD = torch.empty_like(x_TD), torch.empty_like(x_TD)
    width = weight_D.shape[0]
    rows, code = x_TD.numel() // max(width, 1), native.type_code(x_TD.dtype)
    native.call("rms_norm", variant, code, x_TD, residual_TD, weight_D, sum_TD, out_TD, rows, width, eps)
    return sum_TD, out_TD


def _suits(x_TD: Tensor, weight_D: Tensor) -> bool:
    """Whether the library can take these: on the CPU, of a type that it knows, and no gradient is wanted."""
    return (
        x_TD.device.type == "cpu"
        and native.type_code(x_TD.dtype) is not None
        and weight_D.dtype == x_TD.dtype
        and not (torch.is_grad_enabled() and (x_TD.requires_grad or weight_D.requires_grad))
    )
