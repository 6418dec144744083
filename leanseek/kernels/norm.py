"""RMS normalisation: x / sqrt(mean(x^2) + eps) * weight, computed in fp32; and with a residual that is added first."""

from __future__ import annotations

from typing import Any

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
    given = (variant, x_TD.contiguous(), None, weight_D.contiguous(), eps)
    if torch.is_grad_enabled() and (x_TD.requires_grad or weight_D.requires_grad):
        out: Tensor = _Norm.apply(*given)
        return out
    return _forward(*given)[1]


@native_implementation("add_rms_norm")
def _add_rms_norm(
    variant: str, x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    given = (variant, x_TD.contiguous(), residual_TD.contiguous(), weight_D.contiguous(), eps)
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x_TD, residual_TD, weight_D)):
        both: tuple[Tensor, Tensor] = _Norm.apply(*given)
        return both
    return _forward(*given)


def _forward(
    variant: str, x_TD: Tensor, residual_TD: Tensor | None, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the sum with the residual (without one: x itself) and that normalised; all are contiguous."""
    sum_TD = x_TD if residual_TD is None else torch.empty_like(x_TD)
    out_TD = torch.empty_like(x_TD)
    written = None if residual_TD is None else sum_TD
    sizes = _sizes(x_TD, weight_D)
    code = native.type_code(x_TD.dtype)
    native.call("rms_norm", variant, code, x_TD, residual_TD, weight_D, written, out_TD, *sizes, eps)
    return sum_TD, out_TD


class _Norm(torch.autograd.Function):
    """The native kernels, both ways; with a residual the sum is given too, and what comes back to it is added."""

    @staticmethod
    def forward(
        ctx: Any, variant: str, x_TD: Tensor, residual_TD: Tensor | None, weight_D: Tensor, eps: float
    ) -> Tensor | tuple[Tensor, Tensor]:
        sum_TD, out_TD = _forward(variant, x_TD, residual_TD, weight_D, eps)
        ctx.save_for_backward(sum_TD, weight_D)
        ctx.variant, ctx.eps, ctx.added = variant, eps, residual_TD is not None
        ctx.set_materialize_grads(False)
        return (sum_TD, out_TD) if ctx.added else out_TD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        sum_TD, weight_D = ctx.saved_tensors
        more_TD, out_gradient = gradients if ctx.added else (None, gradients[0])
        if out_gradient is None:
            return None, more_TD, more_TD, None, None
        if torch.is_grad_enabled():  # the gradient's own gradient is wanted
            x_gradient, weight_gradient = _again(sum_TD, weight_D, ctx.eps, out_gradient)
            x_gradient = x_gradient if more_TD is None else x_gradient + more_TD
        else:
            x_gradient, weight_gradient = torch.empty_like(sum_TD), torch.empty_like(weight_D)
            given = (sum_TD, weight_D, out_gradient.contiguous(), None if more_TD is None else more_TD.contiguous())
            sizes, code = _sizes(sum_TD, weight_D), native.type_code(sum_TD.dtype)
            native.call("rms_norm_backward", ctx.variant, code, *given, x_gradient, weight_gradient, *sizes, ctx.eps)
        return None, x_gradient, x_gradient if ctx.added else None, weight_gradient, None


def _again(x_TD: Tensor, weight_D: Tensor, eps: float, out_gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and weight by autograd, which can go on from them."""
    x_TD, weight_D = (t if t.requires_grad else t.detach().requires_grad_() for t in (x_TD, weight_D))
    out_TD = rms_norm_reference(x_TD, weight_D, eps)
    x_gradient, weight_gradient = torch.autograd.grad(out_TD, (x_TD, weight_D), out_gradient, create_graph=True)
    return x_gradient, weight_gradient


def _sizes(x_TD: Tensor, weight_D: Tensor) -> tuple[int, int]:
    """Return rows and their width."""
    width = weight_D.shape[0]
    return x_TD.numel() // max(width, 1), width


def _suits(x_TD: Tensor, weight_D: Tensor) -> bool:
    """Whether the library can take these: on the CPU, of a type that it knows, and not to be compiled by torch."""
    return (
        x_TD.device.type == "cpu"
        and native.type_code(x_TD.dtype) is not None
        and weight_D.dtype == x_TD.dtype
        and not torch.compiler.is_compiling()
    )
