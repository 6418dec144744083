"""RMS normalisation: x / sqrt(mean(x^2) + eps) * weight, computed in fp32; and with a residual that is added first."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanseek.kernels import native
from leanseek.kernels.registry import chosen, native_implementation, reference

# Parts that a weight's gradient is summed in: the same whatever the number of threads.
PIECES = 16


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
    if _learns(x_TD, weight_D):
        learnt: Tensor = _RmsNorm.apply(x_TD, weight_D, eps)
        return learnt
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
    if _learns(x_TD, weight_D) and residual_TD.dtype == x_TD.dtype and residual_TD.shape == x_TD.shape:
        learnt: tuple[Tensor, Tensor] = _AddRmsNorm.apply(x_TD, residual_TD, weight_D, eps)
        return learnt
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


@reference("rms_norm_gradient")
def rms_norm_gradient_reference(
    x_TD: Tensor, weight_D: Tensor, gradient_TD: Tensor, more_TD: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of `rms_norm`'s x and weight in plain torch; fp32.

    Args:
        x_TD, weight_D, eps: as of `rms_norm`.
        gradient_TD: of its result.
        more_TD: what flows into x from elsewhere, added to its gradient; None: nothing.
    """
    scale_T1 = torch.rsqrt(x_TD.square().mean(-1, keepdim=True) + eps)
    weighted_TD = gradient_TD * weight_D
    back_T1 = (weighted_TD * x_TD).mean(-1, keepdim=True) * scale_T1**3
    of_x_TD = weighted_TD * scale_T1 - x_TD * back_T1
    of_weight_D = (gradient_TD * x_TD * scale_T1).reshape(-1, weight_D.shape[0]).sum(0)
    return of_x_TD if more_TD is None else of_x_TD + more_TD, of_weight_D


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


@native_implementation("rms_norm_gradient")
def _rms_norm_gradient(
    variant: str, x_TD: Tensor, weight_D: Tensor, gradient_TD: Tensor, more_TD: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    x_TD, weight_D, gradient_TD = x_TD.contiguous(), weight_D.contiguous(), gradient_TD.contiguous()
    more_TD = None if more_TD is None else more_TD.contiguous()
    width = weight_D.shape[0]
    rows = x_TD.numel() // max(width, 1)
    pieces = min(PIECES, rows)
    of_x_TD, parts = torch.empty_like(x_TD), x_TD.new_empty(pieces, width)
    native.call(
        *("rms_norm_gradient", variant, x_TD, weight_D, gradient_TD, more_TD, of_x_TD, parts),
        *(rows, width, pieces, eps),
    )
    return of_x_TD, parts.sum(0)


class _RmsNorm(torch.autograd.Function):
    """The norm with a gradient in one pass, which starts from x alone: plain torch keeps more, and reads it often."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x_TD, weight_D)
        ctx.eps = eps
        out_TD: Tensor = _native("rms_norm", x_TD, weight_D, eps)
        return out_TD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weight_D = ctx.saved_tensors
        return (*_native("rms_norm_gradient", x_TD, weight_D, gradients[0], None, ctx.eps), None)


class _AddRmsNorm(torch.autograd.Function):
    """The same behind a sum, whose own gradient is added on the way."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        sum_TD, out_TD = _native("add_rms_norm", x_TD, residual_TD, weight_D, eps)
        ctx.save_for_backward(sum_TD, weight_D)
        ctx.eps = eps
        return sum_TD, out_TD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        sum_TD, weight_D = ctx.saved_tensors
        of_sum_TD, of_weight_D = _native("rms_norm_gradient", sum_TD, weight_D, gradients[1], gradients[0], ctx.eps)
        return of_sum_TD, of_sum_TD, of_weight_D, None


def _native(op: str, *arguments: Any) -> Any:
    function = chosen(op)
    assert function is not None, "callers look"
    return function(*arguments)


def _learns(x_TD: Tensor, weight_D: Tensor) -> bool:
    """Whether a gradient is wanted of what the library can take: fp32 on the CPU."""
    return (
        torch.is_grad_enabled()
        and x_TD.device.type == "cpu"
        and x_TD.dtype == weight_D.dtype == torch.float32
        and chosen("rms_norm_gradient") is not None
    )


def _suits(x_TD: Tensor, weight_D: Tensor) -> bool:
    """Whether the library can take these: on the CPU, of a type that it knows, and no gradient is wanted."""
    return (
        x_TD.device.type == "cpu"
        and native.type_code(x_TD.dtype) is not None
        and weight_D.dtype == x_TD.dtype
        and not (torch.is_grad_enabled() and (x_TD.requires_grad or weight_D.requires_grad))
    )
