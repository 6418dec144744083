"""Next-token prediction with MTP: the loss of pretraining and SFT."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from leanseek.data.batches import IGNORED, Batch
from leanseek.model.experts import Routing
from leanseek.model.transformer import Transformer
from leanseek.train.balance import expert_counts, sequence_balance_loss
from leanseek.train.objectives.logprobs import token_logprobs
from leanseek.train.objectives.loss import Loss


@dataclass(frozen=True)
class NextToken:
    """Cross-entropy of the next token, plus the MTP loss and the sequence-wise balance loss.

    Args:
        mtp_weight: lambda of the MTP loss; 0 leaves the MTP layer out.
        balance_loss: alpha of the balance loss.
        most_logits: logits (tokens x vocabulary) in memory at once; None: all of a forward pass. With a bound they
            are computed anew for the gradient, one more product with the head.
    Source: DeepSeek-V3 report sections 2.1.2 and 2.2.
    """

    mtp_weight: float
    balance_loss: float
    most_logits: int | None = None

    def __call__(self, model: Transformer, batch: Batch) -> Loss:
        """Return the loss of a batch."""
        routing = Routing(keep_scores=self.balance_loss > 0)
        hidden_TD = model(batch.tokens_T, batch.segments, routing=routing)
        main = cross_entropy(model, hidden_TD, batch.targets_T, self.most_logits)
        total = main
        metrics = {"loss": main.detach()}
        mtp_weight = self.mtp_weight if batch.mtp_weight is None else batch.mtp_weight
        mtp_runs = batch.mtp and mtp_weight > 0 and model.mtp_layer is not None
        if mtp_runs:
            # Its router is balanced by its bias too; the balance loss is over the main layers alone.
            ahead = Routing()
            ahead_TD = model.mtp(hidden_TD, batch.next_tokens_T, batch.segments, routing=ahead)
            mtp = cross_entropy(model, ahead_TD, batch.second_targets_T, self.most_logits) * batch.mtp_share
            total = total + mtp_weight * mtp
            metrics["mtp_loss"] = mtp.detach()
        if self.balance_loss > 0 and routing.scores:
            total = total + self.balance_loss * sequence_balance_loss(routing, batch.segments)
        counts = expert_counts(routing, model.config.n_routed_experts)
        if mtp_runs:
            counts += expert_counts(ahead, model.config.n_routed_experts)
        figures = {name: float(value) for name, value in metrics.items()}
        return Loss(
            total, figures, batch.segments.tokens, batch.segments.pairs, batch.learnt, mtp=mtp_runs, counts=counts
        )


def cross_entropy(model: Transformer, hidden_TD: Tensor, targets_T: Tensor, most_logits: int | None = None) -> Tensor:
    """Return the mean cross-entropy, in nats, over the targets that are not IGNORED.

    Only rows with a target are multiplied by the head.
    """
    learnt = targets_T != IGNORED
    if not bool(learnt.all()):
        hidden_TD, targets_T = hidden_TD[learnt], targets_T[learnt]
    if targets_T.numel() == 0:
        return hidden_TD.sum() * 0.0
    if most_logits is not None:
        return -token_logprobs(model, hidden_TD, targets_T, most_logits=most_logits).mean()
    return F.cross_entropy(model.logits(hidden_TD).float(), targets_T)


@torch.no_grad()
def mean_loss(model: Transformer, batches: list[Batch], most_logits: int | None = None) -> float:
    """Return the mean next-token loss in nats over batches, each target weighing the same."""
    total, count = 0.0, 0
    for batch in batches:
        targets = int((batch.targets_T != IGNORED).sum())
        hidden_TD = model(batch.tokens_T, batch.segments)
        total += float(cross_entropy(model, hidden_TD, batch.targets_T, most_logits)) * targets
        count += targets
    return total / max(count, 1)
