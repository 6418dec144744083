"""Routed experts: sum over a token's chosen experts of weight * down(silu(gate x) * (up x)).

The form kept is a loop over experts on rows sorted by expert, with a backward written by hand; where weights of fp32
learn on a CPU, `kernels.learning` has both as native kernels.
`bench/moe.py` holds the comparison with `grouped_mm` and a padded batched product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanseek.kernels.invariance import is_invariant, silu
from leanseek.kernels.learning import learning_experts
from leanseek.kernels.linear import LEAST_ROWS, linear, product

# Up to this many choices torch's `grouped_mm` without gradient is the fastest form (`bench/moe.py`).
FEW_CHOICES = 256


def experts_reference(
    x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Compute the routed experts one choice at a time; the definition of the op.

    Args:
        x_TD: inputs.
        weights_TK: mixing weight of each choice.
        experts_TK: expert of each choice, int64 in [0, E).
        gate_up_EFD: [E, 2F, D], the gate's F rows first.
        down_EDF: [E, D, F].
    Returns:
        [T, D].
    """
    out_TD = torch.zeros_like(x_TD)
    for choice in range(experts_TK.shape[1]):
        chosen_T = experts_TK[:, choice]
        hidden = torch.einsum("tfd,td->tf", gate_up_EFD[chosen_T], x_TD)
        gate, up = hidden.chunk(2, dim=-1)
        down = torch.einsum("tdf,tf->td", down_EDF[chosen_T], F.silu(gate) * up)
        out_TD = out_TD + down * weights_TK[:, choice, None].to(down.dtype)
    return out_TD


def routed_experts(
    x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor
) -> Tensor:
    """Compute the routed experts; arguments and result as in `experts_reference`.

    Rows are sorted by expert so that each expert's weights are read once, and the work of an
    expert is two matrix products on a contiguous slice.
    """
    if x_TD.shape[0] == 0:
        return torch.zeros_like(x_TD)
    needs_gradient = torch.is_grad_enabled() and (
        x_TD.requires_grad or weights_TK.requires_grad or gate_up_EFD.requires_grad or down_EDF.requires_grad
    )
    if needs_gradient:
        learning_TD = learning_experts(x_TD, (gate_up_EFD,), down_EDF, weights_TK, experts_TK)
        if learning_TD is not None:
            return learning_TD
        out: Tensor = _RoutedExperts.apply(x_TD, weights_TK, experts_TK, gate_up_EFD, down_EDF)
        return out
    if is_invariant():
        return _invariant(x_TD, weights_TK, experts_TK, gate_up_EFD, down_EDF)
    if x_TD.shape[0] == 1:
        return _one_row(x_TD, weights_TK, experts_TK, gate_up_EFD, down_EDF)
    choices = experts_TK.numel()
    if choices <= FEW_CHOICES and _grouped_mm_takes(x_TD, gate_up_EFD, down_EDF):
        return _few_rows(x_TD, weights_TK, experts_TK, gate_up_EFD, down_EDF)
    order, rows, bounds = _sort_by_expert(experts_TK, gate_up_EFD.shape[0])
    gate_up = _grouped(x_TD.index_select(0, rows), gate_up_EFD, bounds)
    gate, up = gate_up.chunk(2, dim=-1)
    down = _grouped(F.silu(gate).mul_(up), down_EDF, bounds)
    down.mul_(weights_TK.reshape(-1).index_select(0, order).unsqueeze(1).to(down.dtype))
    return torch.zeros_like(x_TD).index_add_(0, rows, down)


def _grouped_mm_takes(*tensors: Tensor) -> bool:
    """Whether torch's grouped product may be used: fp32, and rows that start at multiples of 16 bytes."""
    return all(t.dtype == torch.float32 and t.device.type == "cpu" and t.shape[-1] % 4 == 0 for t in tensors)


def _few_rows(x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    """The sorted loop with the loop inside torch, where calling it for each expert is most of the time."""
    experts, per_token = gate_up_EFD.shape[0], experts_TK.shape[1]
    sorted_M, order = experts_TK.reshape(-1).sort()
    rows = order // per_token
    ends = torch.searchsorted(sorted_M, torch.arange(experts), right=True, out_int32=True)
    gate_up = F.grouped_mm(x_TD.index_select(0, rows), gate_up_EFD.mT, offs=ends)
    width = down_EDF.shape[2]
    hidden = F.silu(gate_up[:, :width]).mul_(gate_up[:, width:])
    hidden.mul_(weights_TK.reshape(-1).index_select(0, order).unsqueeze(1))
    return torch.zeros_like(x_TD).index_add_(0, rows, F.grouped_mm(hidden, down_EDF.mT, offs=ends))


def _one_row(x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    """One token: a matrix-vector product per chosen expert, no sorting."""
    out = torch.zeros_like(x_TD)
    for expert, weight in zip(experts_TK[0].tolist(), weights_TK[0].tolist(), strict=True):
        gate, up = F.linear(x_TD, gate_up_EFD[expert]).chunk(2, dim=-1)
        out.add_(F.linear(F.silu(gate).mul_(up), down_EDF[expert]), alpha=weight)
    return out


def _invariant(x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor) -> Tensor:
    """The sorted loop by invariant products; a token's experts are added up in fp32, in the order of their numbers."""
    experts_TK, places_TK = experts_TK.sort(dim=-1)
    weights_TK = weights_TK.float().gather(1, places_TK)
    order, rows, bounds = _sort_by_expert(experts_TK, gate_up_EFD.shape[0])
    x_MD = x_TD.index_select(0, rows)
    sorted_MD = torch.empty_like(x_MD)
    start = 0
    for expert, end in enumerate(bounds):
        if end > start:
            gate, up = linear(x_MD[start:end], gate_up_EFD[expert]).chunk(2, dim=-1)
            sorted_MD[start:end] = linear(silu(gate) * up, down_EDF[expert])
        start = end
    down_TKD = torch.empty_like(x_MD).index_copy_(0, order, sorted_MD).view(*experts_TK.shape, -1).float()
    out_TD = down_TKD[:, 0] * weights_TK[:, :1]
    for place in range(1, experts_TK.shape[1]):
        out_TD = out_TD + down_TKD[:, place] * weights_TK[:, place, None]
    return out_TD.to(x_TD.dtype)


def _sort_by_expert(experts_TK: Tensor, experts: int) -> tuple[Tensor, Tensor, list[int]]:
    """Return the choices sorted by expert, their token rows, and where each expert's slice ends."""
    flat = experts_TK.reshape(-1)
    order = torch.argsort(flat, stable=True)
    rows = order // experts_TK.shape[1]
    return order, rows, torch.bincount(flat, minlength=experts).cumsum(0).tolist()


def _grouped(rows_MD: Tensor, weights_EFD: Tensor, bounds: list[int]) -> Tensor:
    """Multiply each expert's slice of rows by that expert's weight, transposed."""
    out = rows_MD.new_empty(rows_MD.shape[0], weights_EFD.shape[1])
    start = 0
    for expert, end in enumerate(bounds):
        if end - start >= LEAST_ROWS:
            out[start:end] = product(rows_MD[start:end], weights_EFD[expert])
        elif end > start:
            torch.mm(rows_MD[start:end], weights_EFD[expert].t(), out=out[start:end])
        start = end
    return out


class _RoutedExperts(torch.autograd.Function):
    """The sorted loop with its gradient by hand: no per-expert graph nodes, one gather each way."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up_EFD: Tensor, down_EDF: Tensor
    ) -> Tensor:
        order, rows, bounds = _sort_by_expert(experts_TK, gate_up_EFD.shape[0])
        x_MD = x_TD.index_select(0, rows)
        gate_up_MF = _grouped(x_MD, gate_up_EFD, bounds)
        gate, up = gate_up_MF.chunk(2, dim=-1)
        down_MD = _grouped(F.silu(gate).mul_(up), down_EDF, bounds)
        weights_M = weights_TK.reshape(-1).index_select(0, order)
        out_TD = torch.zeros_like(x_TD).index_add_(0, rows, down_MD * weights_M.unsqueeze(1).to(down_MD.dtype))
        ctx.save_for_backward(x_MD, gate_up_MF, down_MD, weights_M, order, rows, gate_up_EFD, down_EDF)
        ctx.bounds, ctx.shapes = bounds, (x_TD.shape, weights_TK.shape)
        return out_TD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_MD, gate_up_MF, down_MD, weights_M, order, rows, gate_up_EFD, down_EDF = ctx.saved_tensors
        out_gradient_MD = gradients[0].index_select(0, rows)
        weights_gradient = torch.empty_like(weights_M)
        weights_gradient[...] = (out_gradient_MD * down_MD).sum(-1)
        weights_gradient_TK = torch.empty_like(weights_M).index_copy_(0, order, weights_gradient)
        out_gradient_MD = out_gradient_MD * weights_M.unsqueeze(1).to(out_gradient_MD.dtype)

        gate, up = gate_up_MF.chunk(2, dim=-1)
        sigmoid = torch.sigmoid(gate)
        activated = gate * sigmoid
        hidden_MF = activated * up
        hidden_gradient = torch.empty_like(hidden_MF)
        gate_up_gradient_MF = torch.empty_like(gate_up_MF)
        x_gradient_MD = torch.empty_like(x_MD)
        gate_up_gradient = torch.zeros_like(gate_up_EFD)
        down_gradient = torch.zeros_like(down_EDF)
        start = 0
        for expert, end in enumerate(ctx.bounds):
            if end > start:
                piece = out_gradient_MD[start:end]
                hidden_gradient[start:end] = product(piece, down_EDF[expert].t())
                down_gradient[expert] = product(piece.t(), hidden_MF[start:end].t())
            start = end
        half = gate.shape[1]
        torch.mul(hidden_gradient, activated, out=gate_up_gradient_MF[:, half:])
        # d silu(g) / dg = s (1 + g (1 - s)) with s = sigmoid(g)
        slope = sigmoid.mul_(torch.addcmul(torch.ones_like(gate), gate, 1 - sigmoid))
        torch.mul(hidden_gradient.mul_(up), slope, out=gate_up_gradient_MF[:, :half])
        start = 0
        for expert, end in enumerate(ctx.bounds):
            if end > start:
                piece = gate_up_gradient_MF[start:end]
                x_gradient_MD[start:end] = product(piece, gate_up_EFD[expert].t())
                gate_up_gradient[expert] = product(piece.t(), x_MD[start:end].t())
            start = end
        shape, weights_shape = ctx.shapes
        x_gradient_TD = x_MD.new_zeros(shape).index_add_(0, rows, x_gradient_MD)
        return x_gradient_TD, weights_gradient_TK.view(weights_shape), None, gate_up_gradient, down_gradient
