"""Layers without state of their own kind: RMSNorm, Linear, Embedding, SwiGLU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leanseek.kernels.linear import linear
from leanseek.kernels.norm import rms_norm


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


class Linear(nn.Module):
    """y = W x without bias; W is [out, in], as checkpoints store it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x_TD: Tensor) -> Tensor:
        """Multiply by the weight, transposed."""
        return linear(x_TD, self.weight)


class Embedding(nn.Module):
    """A row per token of the vocabulary."""

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, dim))

    def forward(self, tokens_T: Tensor) -> Tensor:
        """Look the rows up."""
        return F.embedding(tokens_T, self.weight)


class SwiGLU(nn.Module):
    """down(silu(gate x) * (up x)): the dense MLP, and the shared experts.

    Source: DeepSeek-V3 report section 2; Shazeer 2020 (arXiv 2002.05202).
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.gate_proj = Linear(dim, width)
        self.up_proj = Linear(dim, width)
        self.down_proj = Linear(width, dim)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Apply the gated MLP."""
        return self.down_proj(F.silu(self.gate_proj(x_TD)) * self.up_proj(x_TD))
