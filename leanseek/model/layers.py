"""Layers without state of their own kind: norms, Linear, Embedding, SwiGLU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanseek.kernels.invariance import silu
from leanseek.kernels.learning import learning_experts
from leanseek.kernels.linear import linear
from leanseek.kernels.norm import add_rms_norm, rms_norm
from leanseek.kernels.packed import Packed, packed_experts, packed_linear
from leanseek.kernels.stored import Stored, StoredExperts, stored_experts, stored_linear


class RMSNorm(nn.Module):
    """Root-mean-square normalisation with a learnt scale.

    Args:
        dim: width that is normalised.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x_TD: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return rms_norm(x_TD, self.weight, self.eps)

    def after(self, x_TD: Tensor, residual_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Return residual + x, and that sum normalised."""
        return add_rms_norm(x_TD, residual_TD, self.weight, self.eps)


class LowRank(nn.Module):
    """scale B A x: a low-rank update that stands beside a weight which cannot be written, as a packed one.

    Args:
        a_RD, b_OR: its factors.
        scale: on their product.
    Source: Hu et al. 2021 (arXiv 2106.09685) section 4.1.
    """

    def __init__(self, a_RD: nn.Parameter, b_OR: nn.Parameter, scale: float) -> None:
        super().__init__()
        self.a, self.b, self.scale = a_RD, b_OR, scale

    def forward(self, x_TD: Tensor) -> Tensor:
        """Apply it."""
        return linear(linear(x_TD, self.a), self.b) * self.scale

    def product(self) -> Tensor:
        """Return what it adds to the weight, [out, in]."""
        return (self.b @ self.a) * self.scale


class Linear(nn.Module):
    """y = W x; W is [out, in], as checkpoints store it, or packed. Only dense students have a bias.

    Attributes:
        packed: what stands in place of `weight`, rounded anew.
        stored: what stands in its place as a file has it.
    """

    packed: Packed | None = None
    stored: Stored | None = None

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.low_rank: LowRank | None = None
        if bias:
            self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x_TD: Tensor) -> Tensor:
        """Multiply by the weight, transposed."""
        if self.packed is not None:
            out_TD = packed_linear(x_TD, self.packed)
        elif self.stored is not None:
            out_TD = stored_linear(x_TD, self.stored)
        else:
            out_TD = linear(x_TD, self.weight)
        if self.low_rank is not None:
            out_TD = out_TD + self.low_rank(x_TD)
        return out_TD + self.bias if hasattr(self, "bias") else out_TD

    def hold(self, packed: Packed) -> None:
        """Have a packed weight in place of the plain one; it learns by a low-rank update beside it alone."""
        del self.weight
        self.packed = packed

    def keep(self, stored: Stored) -> None:
        """Have a weight as its file has it in place of the plain one."""
        del self.weight
        self.stored = stored

    @property
    def is_plain(self) -> bool:
        """Whether it is the product with `weight` and nothing else, so that others may multiply by that instead."""
        own = self.packed is None and self.stored is None and self.low_rank is None and not hasattr(self, "bias")
        return own and "forward" not in vars(self)  # `train.precision` gives it another

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        if self.packed is not None:
            return self.packed.outputs, self.packed.inputs
        return tuple(self.weight.shape if self.stored is None else self.stored.numbers.shape)


class LayerNorm(nn.Module):
    """Normalisation to mean 0 and variance 1 in fp32, with a learnt scale and shift: of the indexer's keys."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x_TD: Tensor) -> Tensor:
        """Normalise the last dimension."""
        normed = F.layer_norm(x_TD.float(), self.weight.shape, self.weight.float(), self.bias.float(), self.eps)
        return normed.to(x_TD.dtype)


class Embedding(nn.Module):
    """A row per token of the vocabulary.

    Attributes:
        out_dtype: what rows are given in; None: as they are kept.
    """

    out_dtype: torch.dtype | None = None

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))

    def forward(self, tokens_T: Tensor) -> Tensor:
        """Look the rows up."""
        rows_TD = F.embedding(tokens_T, self.weight)
        return rows_TD if self.out_dtype is None else rows_TD.to(self.out_dtype)


class SwiGLU(nn.Module):
    """down(silu(gate x) * (up x)): the dense MLP, and the shared experts.

    Source: DeepSeek-V3 report section 2; Shazeer 2020 (arXiv 2002.05202).
    """

    packed: tuple[Packed, Packed] | None = None
    stored: StoredExperts | None = None

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(dim, width)
        self.up_proj = Linear(dim, width)
        self.down_proj = Linear(width, dim)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Apply the gated MLP."""
        if self.packed is not None or self.stored is not None:  # the one expert of a mixture
            whole, first = x_TD.new_ones(x_TD.shape[0], 1), torch.zeros(x_TD.shape[0], 1, dtype=torch.int64)
            if self.stored is not None:
                return stored_experts(x_TD, whole, first, self.stored)
            assert self.packed is not None
            return packed_experts(x_TD, whole, first, *self.packed)
        parts = (self.gate_proj, self.up_proj, self.down_proj)
        if all(part.is_plain for part in parts):
            gate, up, down = (part.weight for part in parts)
            learning_TD = learning_experts(x_TD, (gate, up), down, None, None)
            if learning_TD is not None:
                return learning_TD
        return self.down_proj(silu(self.gate_proj(x_TD)) * self.up_proj(x_TD))

    def hold(self, gate_up: Packed, down: Packed) -> None:
        """Have packed weights, stacks of one, in place of the plain ones."""
        del self.gate_proj, self.up_proj, self.down_proj
        self.packed = (gate_up, down)

    def keep(self, stored: StoredExperts) -> None:
        """Have weights as their file has them, those of one expert, in place of the plain ones."""
        del self.gate_proj, self.up_proj, self.down_proj
        self.stored = stored
