"""Log-probabilities of given tokens, with no more logits in memory at once than wanted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

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
    being kept: memory is then bounded whatever the vocabulary, for one more product with the head.

    Args:
        model: whose head is used.
        hidden_MD: the hidden states that predict the targets.
        targets_M: tokens.
        temperature: that they were drawn at.
        most_logits: logits in memory at once, one place's at least; None: all.
        support: what each place could have drawn; None: any token.
    """

    def of(hidden_MD: Tensor, targets_M: Tensor, support: Support | None) -> Tensor:
        logits_MW = model.logits(hidden_MD).float()
        if temperature != 1.0:
            logits_MW = logits_MW / temperature
        if support is not None:
            logits_MW = support.hide(logits_MW)
        return -F.cross_entropy(logits_MW, targets_M, reduction="none")

    count = len(targets_M)
    rows = count if most_logits is None else max(1, most_logits // model.config.vocab_size)
    if rows >= count:
        return of(hidden_MD, targets_M, support)
    parts = []
    for at in range(0, count, rows):
        last = min(at + rows, count)
        part = None if support is None else support.part(at, last)
        some = (hidden_MD[at:last], targets_M[at:last], part)
        parts.append(checkpoint(of, *some, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(parts)
