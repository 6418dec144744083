"""SwiGLU: silu(gate) * up, times a weight for each row if wanted; with a gradient in one pass, for training on a CPU.

Plain torch takes a pass over memory for each of a dozen elementwise operations, and keeps what they leave. The gradient
here starts from gate and up alone, and gives the output once more, which the product behind it needs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanseek.kernels import native
from leanseek.kernels.invariance import is_invariant, silu
from leanseek.kernels.registry import chosen, native_implementation, reference


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """Return silu(gate) * up.

    Args:
        gate_TF, up_TF: of the same shape and dtype.
    Source: Shazeer 2020 (arXiv 2002.05202).
    """
    learns = torch.is_grad_enabled() and (gate_TF.requires_grad or up_TF.requires_grad)
    if learns and not is_invariant() and suits(gate_TF, up_TF) and chosen("swiglu_gradient") is not None:
        out: Tensor = _Swiglu.apply(gate_TF, up_TF)
        return out
    return silu(gate_TF) * up_TF


def weighted_swiglu(gate_up_MF: Tensor, weights_M: Tensor) -> Tensor:
    """Return silu(gate) * up * weight; no gradient.

    Args:
        gate_up_MF: [M, 2F], the gate first.
        weights_M: float32.
    Returns:
        [M, F].
    """
    gate, up = gate_up_MF.chunk(2, dim=-1)
    function = (chosen("swiglu") if suits(gate, up) else None) or swiglu_reference
    out: Tensor = function(gate, up, weights_M)
    return out


def weighted_swiglu_gradient(
    gate_up_MF: Tensor, weights_M: Tensor, gradient_MF: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `weighted_swiglu`'s arguments, and its result once more.

    Args:
        gate_up_MF, weights_M: its arguments.
        gradient_MF: of its result.
    Returns:
        [M, 2F] of gate and up, [M] of the weights, and the result, [M, F].
    """
    gate, up = gate_up_MF.chunk(2, dim=-1)
    function = (chosen("swiglu_gradient") if suits(gate, up) else None) or swiglu_gradient_reference
    both_MF = torch.empty_like(gate_up_MF)
    _, _, result_MF, of_weights_M = function(gate, up, weights_M, gradient_MF, *both_MF.chunk(2, dim=-1))
    return both_MF, of_weights_M, result_MF


def suits(gate_TF: Tensor, up_TF: Tensor) -> bool:
    """Whether the library can take these: fp32 on the CPU, rows of one kind."""
    return (
        gate_TF.dtype == up_TF.dtype == torch.float32
        and gate_TF.device.type == "cpu"
        and gate_TF.ndim == 2
        and gate_TF.shape == up_TF.shape
        and gate_TF.stride() == up_TF.stride()
        and gate_TF.stride(1) == 1
    )


@reference("swiglu")
def swiglu_reference(gate_TF: Tensor, up_TF: Tensor, weights_T: Tensor | None) -> Tensor:
    """Compute silu(gate) * up, times each row's weight, in plain torch; the definition."""
    out_TF = F.silu(gate_TF).mul_(up_TF)
    return out_TF if weights_T is None else out_TF.mul_(weights_T.unsqueeze(1).to(out_TF.dtype))


@reference("swiglu_gradient")
def swiglu_gradient_reference(
    gate_TF: Tensor, up_TF: Tensor, weights_T: Tensor | None, gradient_TF: Tensor, of_gate_TF: Tensor, of_up_TF: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradient in plain torch; its definition.

    Args:
        gate_TF, up_TF, weights_T: as of `swiglu_reference`.
        gradient_TF: of its result.
        of_gate_TF, of_up_TF: memory for their gradients, both with the same distance from row to row.
    Returns:
        The gradients of gate and up; the result of `swiglu_reference`; and the weights' gradient, float32, which is
        all noughts where there are none.
    """
    sigmoid = torch.sigmoid(gate_TF)
    activated = gate_TF * sigmoid
    out_TF = activated * up_TF
    of_weights_T = gradient_TF.new_zeros(gradient_TF.shape[0], dtype=torch.float32)
    if weights_T is not None:
        of_weights_T[...] = (gradient_TF * out_TF).sum(-1)
        weights_T1 = weights_T.unsqueeze(1).to(out_TF.dtype)
        gradient_TF, out_TF = gradient_TF * weights_T1, out_TF * weights_T1
    # d silu(g) / dg = s (1 + g (1 - s)) with s = sigmoid(g)
    slope = sigmoid * torch.addcmul(torch.ones_like(gate_TF), gate_TF, 1 - sigmoid)
    of_gate_TF.copy_(gradient_TF * up_TF * slope)
    of_up_TF.copy_(gradient_TF * activated)
    return of_gate_TF, of_up_TF, out_TF, of_weights_T


@native_implementation("swiglu")
def _swiglu(variant: str, gate_TF: Tensor, up_TF: Tensor, weights_T: Tensor | None) -> Tensor:
    rows, width = gate_TF.shape
    out_TF = gate_TF.new_empty(rows, width)
    weights_T = None if weights_T is None else weights_T.contiguous()
    native.call("swiglu", variant, gate_TF, up_TF, gate_TF.stride(0), weights_T, out_TF, rows, width)
    return out_TF


@native_implementation("swiglu_gradient")
def _swiglu_gradient(
    variant: str,
    gate_TF: Tensor,
    up_TF: Tensor,
    weights_T: Tensor | None,
    gradient_TF: Tensor,
    of_gate_TF: Tensor,
    of_up_TF: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    assert suits(of_gate_TF, of_up_TF) and of_gate_TF.shape == gate_TF.shape
    rows, width = gate_TF.shape
    out_TF, gradient_TF = gate_TF.new_empty(rows, width), gradient_TF.contiguous()
    weights_T = None if weights_T is None else weights_T.contiguous()
    of_weights_T = gate_TF.new_zeros(rows)
    native.call(
        "swiglu_gradient",
        variant,
        *(gate_TF, up_TF, gate_TF.stride(0), weights_T, gradient_TF),
        *(of_gate_TF, of_up_TF, of_gate_TF.stride(0), out_TF, None if weights_T is None else of_weights_T),
        *(rows, width),
    )
    return of_gate_TF, of_up_TF, out_TF, of_weights_T


class _Swiglu(torch.autograd.Function):
    """silu(gate) * up with both gradients in one pass."""

    @staticmethod
    def forward(ctx: Any, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_TF, up_TF)
        function = chosen("swiglu")
        assert function is not None, "callers look"
        out_TF: Tensor = function(gate_TF, up_TF, None)
        return out_TF

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate_TF, up_TF = ctx.saved_tensors
        function = chosen("swiglu_gradient")
        assert function is not None, "callers look"
        memory = [torch.empty_like(gradients[0], memory_format=torch.contiguous_format) for _ in range(2)]
        of_gate_TF, of_up_TF, _, _ = function(gate_TF, up_TF, None, gradients[0], *memory)
        return of_gate_TF, of_up_TF
