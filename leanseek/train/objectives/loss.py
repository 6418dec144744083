"""Loss: what every objective gives back to the trainer."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Loss:
    """A loss, its figures, and how much work it was.

    Args:
        total: what is differentiated; scalar.
        metrics: figures for the log.
        tokens: tokens that the model read.
        pairs: (token, visible token) pairs that attention computed.
        head_tokens: rows that were multiplied by the output head (the MTP layer's not counted).
        mtp: whether the MTP layer and its head ran too.
        references: further forward passes of models that do not learn, as wide as this one.
        other_flops: of models of another shape that do not learn.
        counts: per MoE layer, how often each expert was chosen; the MTP layer's, where it ran, comes last.
    """

    total: Tensor
    metrics: dict[str, float]
    tokens: int
    pairs: int
    head_tokens: int
    mtp: bool = False
    references: int = 0
    other_flops: float = 0.0
    counts: list[Tensor] = field(default_factory=list)
