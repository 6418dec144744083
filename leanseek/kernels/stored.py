"""Stored weights: products with matrices as checkpoints hold them, bf16 rows or FP8 blocks, which stay where they are.

A weight is [O, D], row by row: bf16, or float8_e4m3fn with a float32 scale for each square of 128 x 128 numbers
(DeepSeek-V3 report section 3.3.2). It becomes fp32 in registers, number by number, and activations are fp32: results
are those of the fp32 weight but for the order of sums, and a row's are the same whatever rows stand beside it. At
decoding, where reading weights is what takes time, that is a half or a quarter of fp32's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from leanseek.errors import KernelError
from leanseek.kernels import native
from leanseek.kernels.registry import chosen, native_implementation, reference

# Side of the square of FP8 numbers that share a scale.
SCALED = 128
# As csrc/widen.h names them.
_KINDS = {torch.bfloat16: 1, torch.float8_e4m3fn: 2}


@dataclass(frozen=True, eq=False)
class Stored:
    """A weight as a checkpoint holds it.

    Args:
        numbers: [O, D], bfloat16 or float8_e4m3fn, contiguous, on the CPU; it may lie in a mapped file.
        scales: of FP8: [ceil(O / 128), ceil(D / 128)], float32, contiguous; None: bf16.
    """

    numbers: Tensor
    scales: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse what the kernels would read wrongly."""
        kind = _KINDS.get(self.numbers.dtype)
        assert kind is not None and self.numbers.ndim == 2 and self.numbers.is_contiguous()
        assert (kind == 2) == (self.scales is not None)
        if self.scales is not None:
            grid = tuple(-(-size // SCALED) for size in self.numbers.shape)
            assert self.scales.dtype == torch.float32 and self.scales.is_contiguous() and self.scales.shape == grid

    @property
    def kind(self) -> int:
        """How the library names the numbers' type."""
        return _KINDS[self.numbers.dtype]

    @property
    def nbytes(self) -> int:
        """What it takes in memory, or in its file."""
        return self.numbers.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def plain(self) -> Tensor:
        """Return the weight in fp32."""
        weight = self.numbers.float()
        if self.scales is None:
            return weight
        rows, columns = weight.shape
        by_row = self.scales.repeat_interleave(SCALED, dim=1)[:, :columns]
        return weight.mul_(by_row.repeat_interleave(SCALED, dim=0)[:rows])


@dataclass(frozen=True, eq=False)
class StoredExperts:
    """The experts of a layer, each where its file has it; all of one type.

    Args:
        gates, ups: [F, D] of each expert.
        downs: [D, F] of each.
    """

    gates: Sequence[Stored]
    ups: Sequence[Stored]
    downs: Sequence[Stored]

    def __post_init__(self) -> None:
        """Refuse a mixture of types."""
        assert len(self.gates) == len(self.ups) == len(self.downs) > 0
        assert len({one.kind for one in (*self.gates, *self.ups, *self.downs)}) == 1

    @property
    def width(self) -> int:
        """F, of an expert's hidden state."""
        return self.gates[0].numbers.shape[0]

    @property
    def nbytes(self) -> int:
        """What they take."""
        return sum(one.nbytes for one in (*self.gates, *self.ups, *self.downs))

    @cached_property
    def addresses(self) -> Tensor:
        """Where each expert's gate, up and down lie, each with its scales behind it: int64, [E, 6]."""
        rows = [
            [address for one in trio for address in (one.numbers.data_ptr(), _address(one.scales))]
            for trio in zip(self.gates, self.ups, self.downs, strict=True)
        ]
        return torch.tensor(rows, dtype=torch.int64)


def stored_linear(x_TD: Tensor, weight: Stored) -> Tensor:
    """Multiply by a stored weight, transposed.

    Args:
        x_TD: [..., D], any float type, on the CPU.
        weight: [O, D].
    Returns:
        [..., O], in the type of `x_TD`.
    """
    flat = x_TD.reshape(-1, x_TD.shape[-1])
    out: Tensor = (_native("stored_linear", x_TD) or stored_linear_reference)(flat.float(), weight)
    return out.to(x_TD.dtype).view(*x_TD.shape[:-1], weight.numbers.shape[0])


def stored_experts(x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, experts: StoredExperts) -> Tensor:
    """Compute a layer's routed experts; `kernels.experts.experts_reference` says what that is.

    Args:
        x_TD: any float type, on the CPU.
        weights_TK: mixing weights.
        experts_TK: int64 in [0, E).
        experts: E of them.
    Returns:
        [T, D], in the type of `x_TD`. Each row is the same whatever the other rows are.
    Raises:
        KernelError: a choice is none of the experts.
    """
    function = _native("stored_experts", x_TD, weights_TK) or stored_experts_reference
    out: Tensor = function(x_TD.float(), weights_TK.float(), experts_TK, experts)
    return out.to(x_TD.dtype)


@reference("stored_linear")
def stored_linear_reference(x_TD: Tensor, weight: Stored) -> Tensor:
    """Multiply by the weight made fp32."""
    return F.linear(x_TD, weight.plain())


@reference("stored_experts")
def stored_experts_reference(x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, experts: StoredExperts) -> Tensor:
    """Compute `stored_experts` in plain torch, expert by expert."""
    if experts_TK.numel() and not 0 <= int(experts_TK.min()) <= int(experts_TK.max()) < len(experts.gates):
        raise KernelError("stored_experts: a token chose an expert that there is not")
    out_TD = torch.zeros_like(x_TD)
    for expert in experts_TK.unique().tolist():
        rows, places = (experts_TK == expert).nonzero(as_tuple=True)
        x_MD = x_TD.index_select(0, rows)
        gate, up = (F.linear(x_MD, one[expert].plain()) for one in (experts.gates, experts.ups))
        mixed = F.linear(F.silu(gate) * up, experts.downs[expert].plain()) * weights_TK[rows, places].unsqueeze(1)
        out_TD = out_TD.index_add(0, rows, mixed)
    return out_TD


@native_implementation("stored_linear")
def _stored_linear(variant: str, x_TD: Tensor, weight: Stored) -> Tensor:
    x_TD, (outputs, inputs) = x_TD.contiguous(), weight.numbers.shape
    assert x_TD.shape[1] == inputs and x_TD.dtype == torch.float32
    out_TO = x_TD.new_empty(x_TD.shape[0], outputs)
    native.call(
        "stored_linear",
        variant,
        weight.kind,
        x_TD,
        x_TD.shape[0],
        inputs,
        weight.numbers,
        weight.scales,
        outputs,
        out_TO,
    )
    return out_TO


@native_implementation("stored_experts")
def _stored_experts(
    variant: str, x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor, experts: StoredExperts
) -> Tensor:
    assert experts_TK.dtype == torch.int64 and x_TD.shape[1] == experts.gates[0].numbers.shape[1]
    x_TD, weights_TK, experts_TK = x_TD.contiguous(), weights_TK.contiguous(), experts_TK.contiguous()
    out_TD = torch.empty_like(x_TD)
    native.call(
        "stored_experts",
        variant,
        experts.gates[0].kind,
        x_TD,
        *x_TD.shape,
        weights_TK,
        experts_TK,
        experts_TK.shape[1],
        len(experts.gates),
        experts.addresses,
        experts.width,
        out_TD,
    )
    return out_TD


def _native(op: str, *inputs: Tensor) -> Callable[..., Tensor] | None:
    """Return the compiled function, which has no gradient; None: the reference's place."""
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    return None if learns else chosen(op)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
