"""Log-probabilities of given tokens, with no more logits in memory at once than wanted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from leanseek.kernels.likelihood import log_likelihood
from leanseek.kernels.linear import linear
from leanseek.model.transformer import Transformer


@dataclass(frozen=True, eq=False)
class Support:
    """The tokens that could have been drawn at each place: what top-p or top-k had left.

    Args:
        tokens_X: the places' tokens one after the other; int64, X in all.
        counts_M: how many each place has; int64.
    Source: keep-sampling-mask, DeepSeek-V3.2 (arXiv 2512.02556) section 3.1.
    """

    tokens_X: Tensor
    counts_M: Tensor

    def part(self, first: int, last: int) -> Support:
        """Return the support of the places [first, last)."""
        start, count = int(self.counts_M[:first].sum()), int(self.counts_M[first:last].sum())
        return Support(self.tokens_X[start : start + count], self.counts_M[first:last])

    def hide(self, logits_MW: Tensor) -> Tensor:
        """Return logits whose tokens outside the support cannot be drawn."""
        hidden_MW = torch.ones_like(logits_MW, dtype=torch.bool)
        hidden_MW[torch.repeat_interleave(self.counts_M), self.tokens_X] = False
        return logits_MW.masked_fill(hidden_MW, float("-inf"))


def token_logprobs(
    model: Transformer,
    hidden_MD: Tensor,
    targets_M: Tensor,
    temperature: float = 1.0,
    *,
    most_logits: int | None = None,
    support: Support | None = None,
) -> Tensor:
    """Return each target's log-probability under softmax(logits / temperature), float32, [M].

    With a bound, places are taken a few at a time, and their logits are computed anew for the gradient instead of
    being kept: memory is then bounded whatever the vocabulary, for one more product with the head
    (`bench/loss_memory.py`).

    Args:
        model: whose head is used.
        hidden_MD: the hidden states that predict the targets.
        targets_M: tokens.
        temperature: that they were drawn at.
        most_logits: logits in memory at once, one place's at least; None: all.
        support: what each place could have drawn; None: any token.
    """
    rows = len(targets_M) if most_logits is None else max(1, most_logits // model.config.vocab_size)
    if rows >= len(targets_M):
        return log_likelihood(_drawable(model.logits(hidden_MD), support), targets_M, temperature)
    if model.lm_head.packed is not None:  # it has no gradient of its own to be added up

        def tile(some_MD: Tensor, some_M: Tensor, part: Support | None) -> Tensor:
            return log_likelihood(_drawable(model.logits(some_MD), part), some_M, temperature)

        return torch.cat(
            [
                checkpoint(tile, hidden_MD[first:last], targets_M[first:last], part, use_reentrant=False)
                for first, last, part in _tiles(len(targets_M), rows, support)
            ]
        )
    out: Tensor = _Tiles.apply(hidden_MD, model.lm_head.weight, targets_M, temperature, rows, support)
    return out


class _Tiles(torch.autograd.Function):
    """The same a few places at a time, both ways, with one gradient of the head that all of them add to."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_MD: Tensor,
        head_WD: Tensor,
        targets_M: Tensor,
        temperature: float,
        rows: int,
        support: Support | None,
    ) -> Tensor:
        ctx.save_for_backward(hidden_MD, head_WD, targets_M)
        ctx.rest = (temperature, rows, support)
        found_M = hidden_MD.new_empty(len(targets_M), dtype=torch.float32)
        for first, last, part in _tiles(len(targets_M), rows, support):
            logits_MW = _drawable(linear(hidden_MD[first:last], head_WD), part)
            found_M[first:last] = log_likelihood(logits_MW, targets_M[first:last], temperature)
        return found_M

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden_MD, head_WD, targets_M = ctx.saved_tensors
        temperature, rows, support = ctx.rest
        hidden_gradient = torch.empty_like(hidden_MD) if ctx.needs_input_grad[0] else None
        # Sums over all tiles: bf16 would lose the small ones.
        head_gradient = torch.zeros_like(head_WD, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for first, last, part in _tiles(len(targets_M), rows, support):
            some_MD, gradient_M = hidden_MD[first:last], gradients[0][first:last] / temperature
            logits_MW = _drawable(linear(some_MD, head_WD), part)
            if temperature != 1.0:
                logits_MW = logits_MW / temperature
            # d log p(target) / d logits = one at the target, less the probabilities.
            slope_MW = torch.softmax(logits_MW, dim=-1, out=logits_MW).mul_(-gradient_M[:, None])
            slope_MW[torch.arange(last - first, device=targets_M.device), targets_M[first:last]] += gradient_M
            slope_MW = slope_MW.to(head_WD.dtype)
            if hidden_gradient is not None:
                hidden_gradient[first:last] = slope_MW @ head_WD
            if head_gradient is not None:
                if head_WD.dtype == torch.float32:
                    head_gradient.addmm_(slope_MW.t(), some_MD)
                else:
                    head_gradient += slope_MW.t() @ some_MD
        head = None if head_gradient is None else head_gradient.to(head_WD.dtype)
        return hidden_gradient, head, None, None, None, None


def _tiles(count: int, rows: int, support: Support | None) -> Iterator[tuple[int, int, Support | None]]:
    for first in range(0, count, rows):
        last = min(first + rows, count)
        yield first, last, None if support is None else support.part(first, last)


def _drawable(logits_MW: Tensor, support: Support | None) -> Tensor:
    logits_MW = logits_MW.float()
    return logits_MW if support is None else support.hide(logits_MW)
