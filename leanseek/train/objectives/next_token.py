"""Next-token prediction with MTP: the loss of pretraining and SFT."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from leanseek.data.batches import IGNORED, Batch
from leanseek.model.config import ModelConfig
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
        routing = self.routing()
        hidden_TD = model(batch.tokens_T, batch.segments, routing=routing)
        loss = self.at_the_end(model, batch, hidden_TD, self.on_the_way(routing, batch))
        return replace(loss, counts=expert_counts(routing, model.config.n_routed_experts) + loss.counts)

    def routing(self) -> Routing:
        """Return what layers note their choices in."""
        return Routing(keep_scores=self.balance_loss > 0)

    def on_the_way(self, routing: Routing, batch: Batch) -> Tensor:
        """Return what the layers that a routing has seen add to the loss; scalar."""
        if self.balance_loss > 0 and routing.scores:
            return self.balance_loss * sequence_balance_loss(routing, batch.segments)
        return torch.zeros((), device=batch.tokens_T.device)

    def looks_ahead(self, config: ModelConfig, batch: Batch) -> bool:
        """Whether the MTP layer learns from a batch."""
        return batch.mtp and self._mtp_weight(batch) > 0 and config.num_nextn_predict_layers > 0

    def figures(self, config: ModelConfig, batch: Batch) -> tuple[str, ...]:
        """Return the names of a batch's metrics."""
        return ("loss", "mtp_loss") if self.looks_ahead(config, batch) else ("loss",)

    def at_the_end(self, model: Transformer, batch: Batch, hidden_TD: Tensor, on_the_way: Tensor) -> Loss:
        """Return the loss of a batch whose hidden states are known; its counts are the MTP layer's alone.

        Args:
            model: of which the head, the embedding and the MTP layer are used.
            batch: that is learnt from.
            hidden_TD: after the last norm.
            on_the_way: what the layers add.
        """
        main = cross_entropy(model, hidden_TD, batch.targets_T, self.most_logits)
        total, metrics = main, {"loss": main.detach()}
        counts: list[Tensor] = []
        ahead = self.looks_ahead(model.config, batch)
        if ahead:
            # Its router is balanced by its bias too; the balance loss is over the main layers alone.
            routing = Routing()
            ahead_TD = model.mtp(hidden_TD, batch.next_tokens_T, batch.segments, routing=routing)
            mtp = cross_entropy(model, ahead_TD, batch.second_targets_T, self.most_logits) * batch.mtp_share
            total = total + self._mtp_weight(batch) * mtp
            metrics["mtp_loss"] = mtp.detach()
            counts = expert_counts(routing, model.config.n_routed_experts)
        figures = {name: float(value) for name, value in metrics.items()}
        read = (batch.segments.tokens, batch.segments.pairs, batch.learnt)
        return Loss(total + on_the_way, figures, *read, mtp=ahead, counts=counts)

    def _mtp_weight(self, batch: Batch) -> float:
        return self.mtp_weight if batch.mtp_weight is None else batch.mtp_weight


def cross_entropy(model: Transformer, hidden_TD: Tensor, targets_T: Tensor, most_logits: int | None = None) -> Tensor:
    """Return the mean cross-entropy, in nats, over the targets that are not IGNORED.

    Only rows with a target are multiplied by the head.
    """
    learnt = targets_T != IGNORED
    if not bool(learnt.all()):
        hidden_TD, targets_T = hidden_TD[learnt], targets_T[learnt]
    if targets_T.numel() == 0:
        return hidden_TD.sum() * 0.0
    return -token_logprobs(model, hidden_TD, targets_T, most_logits=most_logits).mean()


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
