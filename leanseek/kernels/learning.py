"""Learning: a gated MLP, or a layer's experts, with the gradient of all that went in, in fp32.

Between the products of torch's own form lie a dozen passes over memory; the native one takes some rows of an expert at
a time through all of them, while they are in the processor's cache, and keeps gate and up alone for the way back.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from leanseek.kernels import native
from leanseek.kernels.invariance import is_invariant
from leanseek.kernels.registry import chosen, native_implementation, reference

# The native kernel's widths are multiples of this.
STEP = 16
# Bytes of an expert's weights up to which they and their gradients stay in a core's own cache.
MOST_BYTES = 1 << 20


def learning_experts(
    x_TD: Tensor, gate_up: tuple[Tensor, ...], down_EDF: Tensor, weights_TK: Tensor | None, experts_TK: Tensor | None
) -> Tensor | None:
    """Compute experts whose inputs and weights all want gradients; arguments as of `learning_experts_reference`.

    Returns:
        [T, D]; None where there is no kernel for these, or none that is quicker.
    """
    if not _suits(x_TD, *gate_up, down_EDF) or (function := chosen("learning_experts")) is None:
        return None
    out: Tensor = function(x_TD, gate_up, down_EDF, weights_TK, experts_TK)
    return out


@reference("learning_experts")
def learning_experts_reference(
    x_TD: Tensor, gate_up: tuple[Tensor, ...], down_EDF: Tensor, weights_TK: Tensor | None, experts_TK: Tensor | None
) -> Tensor:
    """Compute experts in plain torch; the definition of the op.

    Args:
        x_TD: inputs, float32.
        gate_up: [E, 2F, D], the gate's F rows first; or of a single MLP gate and up apart, [F, D] each.
        down_EDF: [E, D, F]; of a single MLP [D, F].
        weights_TK: mixing weight of each choice; None: of a single MLP.
        experts_TK: expert of each choice, int64 in [0, E); None likewise.
    Returns:
        [T, D].
    """
    if weights_TK is None or experts_TK is None:
        gate_FD, up_FD = gate_up
        return F.linear(F.silu(F.linear(x_TD, gate_FD)) * F.linear(x_TD, up_FD), down_EDF)
    out_TD = torch.zeros_like(x_TD)
    for expert, (gate_up_FD, down_DF) in enumerate(zip(gate_up[0], down_EDF, strict=True)):
        share_T = (weights_TK * (experts_TK == expert)).sum(-1, keepdim=True)
        halves = tuple(gate_up_FD.chunk(2))
        out_TD = out_TD + share_T * learning_experts_reference(x_TD, halves, down_DF, None, None)
    return out_TD


@native_implementation("learning_experts")
def _learning_experts(
    variant: str,
    x_TD: Tensor,
    gate_up: tuple[Tensor, ...],
    down_EDF: Tensor,
    weights_TK: Tensor | None,
    experts_TK: Tensor | None,
) -> Tensor:
    out: Tensor = _Learning.apply(variant, x_TD, weights_TK, experts_TK, down_EDF, *gate_up)
    return out


def _suits(*tensors: Tensor) -> bool:
    """Whether the library takes these, and is quicker."""
    x_TD, down = tensors[0], tensors[-1]
    dim, width = down.shape[-2:]
    return (
        torch.is_grad_enabled()
        and not is_invariant()
        and x_TD.ndim == 2
        and x_TD.shape[0] > 0
        and all(t.requires_grad and t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
        and dim % STEP == 0
        and width % STEP == 0
        and 12 * dim * width <= MOST_BYTES
        # An expert is one thread's.
        and torch.get_num_threads() <= (down.shape[0] if down.ndim > 2 else 1)
    )


class _Experts(ctypes.Structure):
    """Twin of csrc/trained.h's leanseek_experts."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("tokens", "per_token", "experts", "dim", "width", "apart")),
        *((name, ctypes.c_void_p) for name in ("chosen", "x", "weights", "gate", "up", "down", "kept", "out")),
        *((name, ctypes.c_void_p) for name in ("out_gradient", "x_gradient", "weights_gradient")),
        *((name, ctypes.c_void_p) for name in ("gate_gradient", "up_gradient", "down_gradient")),
    ]


class _Learning(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        variant: str,
        x_TD: Tensor,
        weights_TK: Tensor | None,
        experts_TK: Tensor | None,
        down_EDF: Tensor,
        *gate_up: Tensor,
    ) -> Tensor:
        x_TD, down_EDF, *gate_up = (t.contiguous() for t in (x_TD, down_EDF, *gate_up))
        if experts_TK is None:
            experts_TK = torch.zeros(x_TD.shape[0], 1, dtype=torch.int64)
        experts_TK = experts_TK.contiguous()
        weights_TK = None if weights_TK is None else weights_TK.contiguous()
        width = down_EDF.shape[-1]
        kept_MF = x_TD.new_empty(experts_TK.numel(), 2 * width)
        out_TD = torch.empty_like(x_TD)
        given = _given(x_TD, weights_TK, experts_TK, down_EDF, *gate_up)
        given.kept, given.out = kept_MF.data_ptr(), out_TD.data_ptr()
        native.call("learn_forward", variant, ctypes.addressof(given))
        ctx.save_for_backward(kept_MF, x_TD, weights_TK, experts_TK, down_EDF, *gate_up)
        ctx.variant = variant
        return out_TD

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kept_MF, x_TD, weights_TK, experts_TK, down_EDF, *gate_up = ctx.saved_tensors
        given = _given(x_TD, weights_TK, experts_TK, down_EDF, *gate_up)
        out_gradient = gradients[0].contiguous()
        found = [None if t is None else torch.empty_like(t) for t in (x_TD, weights_TK, down_EDF, *gate_up)]
        given.kept, given.out_gradient = kept_MF.data_ptr(), out_gradient.data_ptr()
        given.x_gradient, given.weights_gradient, given.down_gradient = map(_address, found[:3])
        given.gate_gradient, given.up_gradient = _halves(down_EDF.shape[-1], *found[3:])
        native.call("learn_backward", ctx.variant, ctypes.addressof(given))
        return None, found[0], found[1], None, *found[2:]


def _given(x_TD: Tensor, weights_TK: Tensor | None, experts_TK: Tensor, down_EDF: Tensor, *gate_up: Tensor) -> _Experts:
    dim, width = down_EDF.shape[-2:]
    experts = down_EDF.shape[0] if down_EDF.ndim > 2 else 1
    tensors = (_address(t) for t in (experts_TK, x_TD, weights_TK))
    sizes = (*experts_TK.shape, experts, dim, width, 2 * width * dim)
    return _Experts(*sizes, *tensors, *_halves(width, *gate_up), _address(down_EDF))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _halves(width: int, gate_up: Tensor, up: Tensor | None = None) -> tuple[int, int]:
    """Return where gate and up are: in one stack, or apart."""
    first = gate_up.data_ptr()
    return first, first + width * gate_up.shape[-1] * 4 if up is None else up.data_ptr()
