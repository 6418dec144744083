"""Packed weights: int8 by row or int4 in groups of 32, and products with them on activations rounded to int8.

Layout, version 3. A weight [O, D] is padded with zeros to panels of 16 rows and groups of 32 columns. A group of a
panel holds its 16 rows side by side, four columns at a time, so that a lane of a wide register is a row:

    int8: codes uint8 [panels, groups, 512]; the byte at 64 j + 4 r + b is row r's column 4 j + b, plus 128;
          scales float32 [panels, 16]: one a row.
    int4: codes uint8 [panels, groups, 256]; the byte at 64 j + 4 r + b has in its lower half row r's column 4 j + b and
          in its upper half column 16 + 4 j + b, each plus 8; scales uint8 [panels, 64 + 16 groups]: 16 float32 steps,
          one a row, and behind them for each group how many steps (int8) the scale of each of its 16 rows is.

Stacked weights (experts) have one more dimension in front; gate and up are each padded to 32 rows before they are
stacked. A product rounds each group of 32 activations to int8 with a scale of its own (largest / 127, to the nearest,
ties to even), multiplies exactly in integers within a group, and adds groups up in fp32. Why groups and not whole rows:
a channel that stands out would take the others' bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leanseek.errors import KernelError
from leanseek.kernels import native
from leanseek.kernels.registry import chosen, native_implementation, reference

LAYOUT = 3
PANEL, GROUP = 16, 32
STEPS = 4 * PANEL  # bytes of a panel's steps
BITS = (4, 8)
# Numbers of a packed weight that are there as fp32 at once, where a gradient flows back through it.
TILE_NUMBERS = 1 << 22


@dataclass(frozen=True, eq=False)
class Packed:
    """A weight, or a stack of them, in the layout above.

    Args:
        codes: uint8, [..., panels, groups, 64 * bits].
        scales: int8: float32, [..., panels, 16]; int4: uint8, [..., panels, 64 + 16 groups].
        outputs: O, rows that are there; in a stack of gate and up the width F of one.
        inputs: D, columns that are there.
    """

    codes: Tensor
    scales: Tensor
    outputs: int
    inputs: int

    @property
    def bits(self) -> int:
        """Bits of a number: 4 or 8."""
        return self.codes.shape[-1] // 64

    @property
    def scales_of_groups(self) -> tuple[Tensor, Tensor]:
        """Of 4 bits: views of the steps, float32 [..., panels, 16], and counts, int8 [..., panels, groups, 16]."""
        assert self.bits == 4
        steps, counts = self.scales[..., :STEPS], self.scales[..., STEPS:]
        return steps.view(torch.float32), counts.view(torch.int8).unflatten(-1, (-1, PANEL))

    def fill_scales(self, scale: float) -> None:
        """Give all groups one scale."""
        if self.bits == 8:
            self.scales.fill_(scale)
            return
        steps, counts = self.scales_of_groups
        steps.fill_(scale / 64)
        counts.fill_(64)

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return self.codes.nbytes + self.scales.nbytes

    def of_stack(self, index: int) -> Packed:
        """Return one weight of a stack."""
        return replace(self, codes=self.codes[index], scales=self.scales[index])

    def rows(self, first: int, count: int) -> Packed:
        """Return some of a weight's outputs; they begin with a panel."""
        assert first % PANEL == 0, "a panel is not cut"
        panels = slice(first // PANEL, -(-(first + count) // PANEL))
        return replace(self, codes=self.codes[panels], scales=self.scales[panels], outputs=count)


def empty_packed(bits: int, outputs: int, inputs: int, *stack: int, halves: int = 1, device: str = "cpu") -> Packed:
    """Return memory for a weight.

    Args:
        bits: 4 or 8.
        outputs, inputs: of the weight.
        stack: dimensions in front.
        halves: 2 for gate and up stacked, each of `outputs` rows.
        device: "meta" to know the shapes alone.
    """
    assert bits in BITS
    panels = -(-outputs // PANEL) if halves == 1 else 2 * -(-outputs // GROUP) * (GROUP // PANEL)
    groups = -(-inputs // GROUP)
    codes = torch.empty((*stack, panels, groups, 64 * bits), dtype=torch.uint8, device=device)
    kind = torch.uint8 if bits == 4 else torch.float32
    shape = (*stack, panels, STEPS + groups * PANEL if bits == 4 else PANEL)
    return Packed(codes, torch.empty(shape, dtype=kind, device=device), outputs, inputs)


def pack(weight_OD: Tensor, bits: int) -> Packed:
    """Round and pack a weight.

    int8 takes a row's largest number to 127. int4 tries six scales for each group, fits each to its codes, and keeps
    the one with the least squared error: 10% less of it than by the largest number alone. Then scales are rounded to
    127ths of their row's largest, which costs nothing that could be told from noise, and codes are made for these.

    Args:
        weight_OD: fp32 or bf16.
        bits: 4 or 8.
    Raises:
        KernelError: a weight is not finite, or too large for a scale.
    """
    packed = empty_packed(bits, *weight_OD.shape)
    pack_into(weight_OD, packed.codes, packed.scales)
    return packed


def pack_into(weight_OD: Tensor, codes: Tensor, scales: Tensor) -> None:
    """Pack a weight into memory that is there, [panels, groups, ...]; see `pack`."""
    weight_OD = weight_OD.detach()
    if native.type_code(weight_OD.dtype) is None:
        weight_OD = weight_OD.float()
    function = chosen("pack") or pack_reference
    function(weight_OD.contiguous(), codes, scales)


def packed_linear(x_TD: Tensor, weight: Packed) -> Tensor:
    """Multiply by a packed weight, transposed.

    Args:
        x_TD: [..., D], any float type, on the CPU.
        weight: not a stack.
    Returns:
        [..., O], in the type of `x_TD`. A number that is not finite makes its whole row not a number. The gradient of
        `x_TD` is that of the product with the numbers that the weight stands for; that activations are rounded is
        passed over (straight through).
    """
    if torch.is_grad_enabled() and x_TD.requires_grad:
        learnt: Tensor = _PackedLinear.apply(x_TD, weight)
        return learnt
    flat = x_TD.reshape(-1, x_TD.shape[-1])
    function = chosen("packed_linear") or packed_linear_reference
    out: Tensor = function(flat.float(), weight)
    return out.to(x_TD.dtype).view(*x_TD.shape[:-1], weight.outputs)


def packed_experts(x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up: Packed, down: Packed) -> Tensor:
    """Compute a layer's routed experts; `kernels.experts.experts_reference` says what that is.

    Args:
        x_TD: any float type, on the CPU.
        weights_TK: mixing weights.
        experts_TK: int64 in [0, E).
        gate_up: a stack of E, gate and up.
        down: a stack of E.
    Returns:
        [T, D], in the type of `x_TD`. Each row is the same whatever the other rows are. Gradients of `x_TD` and
        `weights_TK` as of `packed_linear`.
    Raises:
        KernelError: a choice is none of the experts.
    """
    if torch.is_grad_enabled() and (x_TD.requires_grad or weights_TK.requires_grad):
        learnt: Tensor = _PackedExperts.apply(x_TD, weights_TK, experts_TK, gate_up, down)
        return learnt
    function = chosen("packed_experts") or packed_experts_reference
    out: Tensor = function(x_TD.float(), weights_TK.float(), experts_TK, gate_up, down)
    return out.to(x_TD.dtype)


class _PackedLinear(torch.autograd.Function):
    """The product, and the gradient of its input through a few rows of the weight at a time."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight: Packed) -> Tensor:
        ctx.weight = weight
        return packed_linear(x_TD, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight: Packed = ctx.weight
        gradient_TO = gradients[0].reshape(-1, weight.outputs).float()
        gradient_TD = gradient_TO.new_zeros(gradient_TO.shape[0], weight.inputs)
        step = max(TILE_NUMBERS // (weight.inputs * PANEL), 1)
        for panel in range(0, -(-weight.outputs // PANEL), step):
            first, last = panel * PANEL, min((panel + step) * PANEL, weight.outputs)
            part = Packed(
                weight.codes[panel : panel + step], weight.scales[panel : panel + step], last - first, weight.inputs
            )
            gradient_TD.addmm_(gradient_TO[:, first:last], unpack(part))
        return gradient_TD.to(gradients[0].dtype).view(*gradients[0].shape[:-1], weight.inputs), None


class _PackedExperts(torch.autograd.Function):
    """The experts, and the gradients of their input and mixing weights through one expert's weights at a time."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up: Packed, down: Packed
    ) -> Tensor:
        ctx.save_for_backward(x_TD, weights_TK, experts_TK)
        ctx.packed = (gate_up, down)
        return packed_experts(x_TD, weights_TK, experts_TK, gate_up, down)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weights_TK, experts_TK = ctx.saved_tensors
        gradient_TD = torch.zeros_like(x_TD, dtype=torch.float32)
        weights_gradient_TK = torch.zeros_like(weights_TK, dtype=torch.float32)
        for expert in experts_TK.unique().tolist():
            rows, places = (experts_TK == expert).nonzero(as_tuple=True)
            gate_up_FD, down_DF = (
                unpack(Packed(one.codes[expert], one.scales[expert], one.outputs, one.inputs)) for one in ctx.packed
            )
            gate_up_MF = x_TD.index_select(0, rows).float() @ gate_up_FD.t()
            hidden_gradient_MF = gradients[0].index_select(0, rows).float() @ down_DF
            gate_MF, up_MF = gate_up_MF.chunk(2, dim=-1)
            sigmoid_MF = torch.sigmoid(gate_MF)
            activated_MF = gate_MF * sigmoid_MF
            of_weights_M = (hidden_gradient_MF * activated_MF * up_MF).sum(-1)
            hidden_gradient_MF = hidden_gradient_MF * weights_TK[rows, places].float().unsqueeze(1)
            # d silu(g) / dg = s (1 + g (1 - s)) with s = sigmoid(g)
            of_gate_MF = hidden_gradient_MF * up_MF * sigmoid_MF * (1 + gate_MF * (1 - sigmoid_MF))
            gate_up_gradient_MF = torch.cat((of_gate_MF, hidden_gradient_MF * activated_MF), dim=-1)
            gradient_TD.index_add_(0, rows, gate_up_gradient_MF @ gate_up_FD)
            weights_gradient_TK[rows, places] = of_weights_M
        return gradient_TD.to(x_TD.dtype), weights_gradient_TK.to(weights_TK.dtype), None, None, None


def unpack(weight: Packed) -> Tensor:
    """Return the numbers that a packed weight stands for, fp32, [..., O, D]; gate and up one after the other."""
    numbers = unpack_codes(weight)
    if weight.bits == 4:
        steps, counts = weight.scales_of_groups
        scales = (steps.unsqueeze(-2) * counts).transpose(-1, -2).unsqueeze(-1)  # [..., panels, 16, groups, 1]
    else:
        scales = weight.scales[..., None, None]
    whole = (numbers * scales).flatten(-2).flatten(-3, -2)[..., : weight.inputs]
    rows = whole.shape[-2]
    if rows - weight.outputs < PANEL:
        return whole[..., : weight.outputs, :]
    gate, up = whole[..., : rows // 2, :], whole[..., rows // 2 :, :]
    return torch.cat((gate[..., : weight.outputs, :], up[..., : weight.outputs, :]), dim=-2)


def transposed(weight: Packed, heads: int, outputs: int) -> tuple[Packed, Tensor]:
    """Return the first outputs of each head, transposed: what is multiplied with a head's own, and not with all.

    Nothing is rounded again: the codes are the same, and the scales, which were the rows', are the caller's to apply
    to what is multiplied.

    Args:
        weight: of 8 bits, [heads * (outputs + others), D].
        heads: H.
        outputs: O, of each head.
    Returns:
        A stack of H weights [D, O] with scales of 1, and the scales, [H, O].
    """
    assert weight.bits == 8 and weight.outputs % (heads * PANEL) == 0 and outputs % PANEL == 0
    dim, used = weight.inputs, outputs // PANEL
    codes = weight.codes.unflatten(0, (heads, -1))[:, :used].unflatten(-1, (GROUP // 4, PANEL, 4))
    codes_HOD = codes.permute(0, 1, 4, 2, 3, 5).reshape(heads, outputs, -1)[:, :, :dim]  # [H, panel, r, group, j, b]
    codes_HDO = F.pad(codes_HOD.mT, (0, -outputs % GROUP, 0, -dim % PANEL), value=128)
    split = codes_HDO.reshape(heads, -(-dim // PANEL), PANEL, -(-outputs // GROUP), GROUP // 4, 4)
    stack = split.permute(0, 1, 3, 4, 2, 5).flatten(3).contiguous()
    scales = weight.scales.unflatten(0, (heads, -1))[:, :used].flatten(1).contiguous()
    return Packed(stack, torch.ones(*stack.shape[:2], PANEL), dim, outputs), scales


def unpack_codes(weight: Packed) -> Tensor:
    """Return the whole numbers of a packed weight, padding and all, fp32, [..., panels, 16, groups, 32]."""
    codes = weight.codes.unflatten(-1, (-1, PANEL, 4))  # [..., panels, groups, j, r, b]
    if weight.bits == 4:
        numbers = torch.cat((codes & 15, codes >> 4), dim=-3).float() - 8
    else:
        numbers = codes.float() - 128
    return numbers.movedim(-2, -4).flatten(-2)


def round_activations(x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """Round activations as the kernels do; return whole numbers [T, groups, 32] and scales [T, groups], fp32."""
    padded = F.pad(x_TD.float(), (0, -x_TD.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    largest = padded.abs().amax(-1)
    nought = largest < 1e-36
    inverse = torch.where(nought, 0.0, 127.0 / largest)
    finite = padded.isfinite().all(-1)
    numbers = torch.where(finite.unsqueeze(-1), (padded * inverse.unsqueeze(-1)).round(), 0.0)
    scales = torch.where(nought, 0.0, largest / 127.0)
    return numbers, torch.where(finite, scales, float("nan"))


@reference("pack")
def pack_reference(weight_OD: Tensor, codes: Tensor, scales: Tensor) -> None:
    """Pack in plain torch; the definition, but for ties between scales that fit equally well."""
    panels, groups = codes.shape[0], codes.shape[1]
    if not weight_OD.isfinite().all():
        raise KernelError("pack: a weight is not finite: it cannot be packed")
    rows, width = weight_OD.shape
    padded = F.pad(weight_OD.float(), (0, groups * GROUP - width, 0, panels * PANEL - rows))
    if codes.shape[2] == 512:
        largest = padded.abs().amax(1)
        nought = largest < 1e-36
        scales.copy_(torch.where(nought, 0.0, largest / 127.0).view(panels, PANEL))
        inverse = torch.where(nought, 0.0, 127.0 / largest)
        numbers = (padded * inverse.unsqueeze(1)).round().clamp_(-127, 127) + 128
        codes.copy_(_interleaved(numbers.to(torch.uint8), panels, groups))
        return
    grouped = padded.view(panels * PANEL, groups, GROUP)
    largest = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True))
    nought = largest.abs() < 1e-30
    best_scale, best = torch.zeros_like(largest), torch.full_like(largest, float("inf"))
    for part in (1.0, 0.96, 0.92, 0.87, 1.06, 1.125):
        q = torch.where(nought, 0.0, grouped / (largest * part * -0.125)).round().clamp_(-8, 7)
        squares = (q * q).sum(-1, keepdim=True)
        scale = torch.where(squares == 0, 0.0, (q * grouped).sum(-1, keepdim=True) / squares)
        error = (grouped - scale * q).square().sum(-1, keepdim=True)
        better = (error < best) & ~nought
        best, best_scale = torch.where(better, error, best), torch.where(better, scale, best_scale)
    if not best_scale.isfinite().all():
        raise KernelError("pack: a weight is too large for its scale: it cannot be packed")
    step = best_scale.abs().amax(1, keepdim=True) / 127
    count = torch.where(step == 0, 0.0, best_scale / step).round()
    count = torch.where(count == 0, best_scale.sign(), count)  # small beside the others, but not nought
    of_rows, of_groups = Packed(codes, scales, rows, width).scales_of_groups
    of_rows.copy_(step.view(panels, PANEL))
    of_groups.copy_(count.view(panels, PANEL, groups).transpose(1, 2))
    numbers = torch.where(count == 0, 0.0, grouped / (count * step)).round().clamp_(-8, 7) + 8
    codes.copy_(_interleaved(numbers.to(torch.uint8).flatten(1), panels, groups, halves=True))


@reference("packed_linear")
def packed_linear_reference(x_TD: Tensor, weight: Packed) -> Tensor:
    """Compute `packed_linear` in plain torch: the same integers, and sums in another order."""
    return _product(x_TD, weight)[:, : weight.outputs]


@reference("packed_experts")
def packed_experts_reference(
    x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up: Packed, down: Packed
) -> Tensor:
    """Compute `packed_experts` in plain torch, expert by expert."""
    if experts_TK.numel() and not 0 <= int(experts_TK.min()) <= int(experts_TK.max()) < gate_up.codes.shape[0]:
        raise KernelError("packed_experts: a token chose an expert that there is not")
    out_TD = torch.zeros_like(x_TD)
    for expert in experts_TK.unique().tolist():
        rows, places = (experts_TK == expert).nonzero(as_tuple=True)
        one = Packed(gate_up.codes[expert], gate_up.scales[expert], gate_up.outputs, gate_up.inputs)
        both = _product(x_TD.index_select(0, rows), one)
        gate, up = both.chunk(2, dim=-1)
        last = Packed(down.codes[expert], down.scales[expert], down.outputs, down.inputs)
        hidden = (F.silu(gate) * up)[:, : down.inputs]
        mixed = _product(hidden, last)[:, : down.outputs] * weights_TK[rows, places].unsqueeze(1)
        out_TD.index_add_(0, rows, mixed)
    return out_TD


@native_implementation("pack")
def _pack(variant: str, weight_OD: Tensor, codes: Tensor, scales: Tensor) -> None:
    code, bits = native.type_code(weight_OD.dtype), codes.shape[-1] // 64
    assert codes.is_contiguous() and scales.is_contiguous() and weight_OD.is_contiguous()
    native.call("pack", variant, code, bits, weight_OD, *weight_OD.shape, codes, scales)
    panels = -(-weight_OD.shape[0] // PANEL)
    codes[panels:] = 0x88 if bits == 4 else 0x80  # noughts
    scales[panels:] = 0


@native_implementation("packed_linear")
def _packed_linear(variant: str, x_TD: Tensor, weight: Packed) -> Tensor:
    assert x_TD.shape[1] == weight.inputs and weight.codes.ndim == 3
    x_TD = x_TD.contiguous()
    out_TO = x_TD.new_empty(x_TD.shape[0], weight.outputs)
    rows, inputs = x_TD.shape
    native.call(
        "packed_linear", variant, weight.bits, x_TD, rows, inputs, weight.codes, weight.scales, weight.outputs, out_TO
    )
    return out_TO


@native_implementation("packed_experts")
def _packed_experts(
    variant: str, x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, gate_up: Packed, down: Packed
) -> Tensor:
    assert x_TD.shape[1] == gate_up.inputs == down.outputs and gate_up.outputs == down.inputs
    assert experts_TK.dtype == torch.int64 and gate_up.bits == down.bits
    x_TD, weights_TK, experts_TK = x_TD.contiguous(), weights_TK.contiguous(), experts_TK.contiguous()
    out_TD = torch.empty_like(x_TD)
    native.call(
        "packed_experts",
        variant,
        gate_up.bits,
        x_TD,
        *x_TD.shape,
        weights_TK,
        experts_TK,
        experts_TK.shape[1],
        gate_up.codes.shape[0],
        gate_up.codes,
        gate_up.scales,
        gate_up.outputs,
        down.codes,
        down.scales,
        out_TD,
    )
    return out_TD


def _product(x_TD: Tensor, weight: Packed) -> Tensor:
    """Return the product with all rows of the panels, the padded ones too."""
    numbers, x_scales = round_activations(x_TD)
    codes = unpack_codes(weight)  # whole numbers in fp32: a group's sum stays below 2^24, and is exact
    sums = torch.einsum("tgk,prgk->tprg", numbers, codes)
    scales = x_scales[:, None, None, :]
    if weight.bits == 4:
        steps, counts = weight.scales_of_groups
        return ((sums * (counts.float().transpose(1, 2) * scales)).sum(-1) * steps).flatten(1)
    return ((sums * scales).sum(-1) * weight.scales).flatten(1)


def _interleaved(codes: Tensor, panels: int, groups: int, *, halves: bool = False) -> Tensor:
    """Return [rows, columns] codes in the order of the layout."""
    split = codes.view(panels, PANEL, groups, GROUP // 4, 4).permute(0, 2, 3, 1, 4)
    if halves:
        lower, upper = split.chunk(2, dim=2)
        split = lower | (upper << 4)
    return split.flatten(2)
