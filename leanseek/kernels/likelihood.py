"""Likelihood: the log-probabilities of given tokens under their places' logits, and the gradient of these."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from leanseek.kernels import native
from leanseek.kernels.registry import chosen, native_implementation, reference


def log_likelihood(logits_MW: Tensor, targets_M: Tensor, temperature: float = 1.0) -> Tensor:
    """Return each target's log-probability under softmax(logits / temperature), in nats, [M].

    Args:
        logits_MW: float32; minus infinity where a token cannot be drawn.
        targets_M: tokens, int64 in [0, W).
        temperature: above 0.
    Raises:
        KernelError, IndexError: a target is none of the vocabulary (with a native kernel, without one).
    """
    suits = logits_MW.dtype == torch.float32 and logits_MW.device.type == "cpu" and not torch.compiler.is_compiling()
    if suits and (function := chosen("log_likelihood")) is not None:
        out: Tensor = function(logits_MW, targets_M, temperature)
        return out
    return log_likelihood_reference(logits_MW, targets_M, temperature)


@reference("log_likelihood")
def log_likelihood_reference(logits_MW: Tensor, targets_M: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute `log_likelihood` in plain torch; its definition."""
    scaled_MW = logits_MW if temperature == 1.0 else logits_MW / temperature
    return -F.cross_entropy(scaled_MW, targets_M, reduction="none")


@native_implementation("log_likelihood")
def _log_likelihood(variant: str, logits_MW: Tensor, targets_M: Tensor, temperature: float) -> Tensor:
    out: Tensor = _Likelihood.apply(variant, logits_MW, targets_M, temperature)
    return out


class _Likelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, variant: str, logits_MW: Tensor, targets_M: Tensor, temperature: float) -> Tensor:
        logits_MW, targets_M = logits_MW.contiguous(), targets_M.contiguous()
        found_M, sums_M = logits_MW.new_empty(2, len(targets_M))
        native.call("likelihood", variant, logits_MW, targets_M, *logits_MW.shape, 1 / temperature, found_M, sums_M)
        ctx.save_for_backward(logits_MW, targets_M, sums_M)
        ctx.variant, ctx.temperature = variant, temperature
        return found_M

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits_MW, targets_M, sums_M = ctx.saved_tensors
        slope_MW = torch.empty_like(logits_MW)
        given = (logits_MW, targets_M, *logits_MW.shape, 1 / ctx.temperature, sums_M, gradients[0].contiguous())
        native.call("likelihood_backward", ctx.variant, *given, slope_MW)
        return None, slope_MW, None, None
