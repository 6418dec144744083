"""Linear: y = x W^T, in fp32 through oneDNN on processors where torch's default product is slow.

torch's CPU build multiplies fp32 matrices with MKL, which on AMD processors stays with AVX2 instructions.
oneDNN, which the same build holds, uses AVX-512 there: 2.3 times as fast from some dozens of rows on
(`bench/linear.py`). The sums are fp32 in both.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanseek import variables
from leanseek.kernels import invariance
from leanseek.kernels.invariance import filled_up, is_invariant

# Below this many rows MKL's product is the faster one: oneDNN costs some microseconds a call more.
LEAST_ROWS = 32
# Where rows must be invariant: from how many on MKL adds up wide fp32 rows in one order. oneDNN and bf16 need fewer.
MKL_LEAST_ROWS = 16


def linear_reference(x_TD: Tensor, weight_OD: Tensor) -> Tensor:
    """Multiply by a weight, transposed; the definition of the op.

    Args:
        x_TD: [..., D].
        weight_OD: [O, D], as checkpoints store it.
    Returns:
        [..., O].
    """
    return F.linear(x_TD, weight_OD)


def linear(x_TD: Tensor, weight_OD: Tensor) -> Tensor:
    """Multiply by a weight, transposed; arguments and result as in `linear_reference`."""
    if is_invariant():
        return _invariant(x_TD, weight_OD)
    if not _suits(x_TD, weight_OD):
        return F.linear(x_TD, weight_OD)
    if torch.is_grad_enabled() and (x_TD.requires_grad or weight_OD.requires_grad):
        out: Tensor = _Linear.apply(x_TD, weight_OD)
        return out
    return _onednn(x_TD, weight_OD)


def product(a_MK: Tensor, b_NK: Tensor) -> Tensor:
    """Return a b^T of two matrices; no gradient."""
    return _onednn(a_MK, b_NK) if _suits(a_MK, b_NK) else torch.mm(a_MK, b_NK.t())


@cache
def onednn_is_faster() -> bool:
    """Whether this process multiplies fp32 matrices by oneDNN: an AMD processor with AVX-512, and a torch that can."""
    if variables.kernels() == "reference" or not torch.backends.mkldnn.is_available():
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def report() -> str:
    """Return in words what multiplies matrices here."""
    return "oneDNN (AVX-512, an AMD processor)" if onednn_is_faster() else "torch's default"


def _invariant(x: Tensor, weight: Tensor) -> Tensor:
    """The product whose rows do not depend on each other, nor on how many there are."""
    flat = x.reshape(-1, x.shape[-1])
    by_onednn = _suits_onednn(flat, weight)
    least = MKL_LEAST_ROWS if x.dtype == torch.float32 and not by_onednn else invariance.LEAST_ROWS
    # Rows are dealt out to threads, and each thread must get enough.
    step = least * torch.get_num_threads()
    rows = filled_up(flat, -(-max(flat.shape[0], 1) // step) * step)
    out = _onednn(rows, weight) if by_onednn else F.linear(rows, weight)
    return out[: flat.shape[0]].view(*x.shape[:-1], -1)


def _suits(x: Tensor, weight: Tensor) -> bool:
    return x.ndim == 2 and x.shape[0] >= LEAST_ROWS and _suits_onednn(x, weight)


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    both = x.dtype == torch.float32 and weight.dtype == torch.float32
    return both and x.device.type == "cpu" and onednn_is_faster()


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return out


class _Linear(torch.autograd.Function):
    """The same product for the gradients; oneDNN takes transposed views as they are."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_OD: Tensor) -> Tensor:
        ctx.save_for_backward(x_TD, weight_OD)
        return _onednn(x_TD, weight_OD)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weight_OD = ctx.saved_tensors
        gradient_TO = gradients[0]
        return (
            _onednn(gradient_TO, weight_OD.t()) if ctx.needs_input_grad[0] else None,
            _onednn(gradient_TO.t(), x_TD.t()) if ctx.needs_input_grad[1] else None,
        )
