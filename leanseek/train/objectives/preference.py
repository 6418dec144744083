"""DPO: a better reply is made likelier against a worse one, measured from a model that does not learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from leanseek.data.batches import IGNORED, Batch, packed_examples
from leanseek.data.traces import Example
from leanseek.model.experts import Routing
from leanseek.model.transformer import Transformer
from leanseek.train.balance import expert_counts
from leanseek.train.objectives.cut import share_out
from leanseek.train.objectives.logprobs import token_logprobs
from leanseek.train.objectives.loss import Loss


@dataclass(frozen=True)
class Pair:
    """A better and a worse reply to the same.

    Args:
        chosen: token ids, and which of them are the reply's.
        rejected: the same of the worse one.
        reference_chosen: log-probability of the better reply under the model that does not learn, in nats.
        reference_rejected: of the worse one.
    """

    chosen: Example
    rejected: Example
    reference_chosen: float = 0.0
    reference_rejected: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens that the model reads."""
        return len(self.chosen[0]) + len(self.rejected[0]) - 2


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Pairs of one step."""

    pairs: Sequence[Pair]
    metrics: Mapping[str, float] = field(default_factory=dict)
    device: torch.device | str = "cpu"

    @cached_property
    def packed(self) -> Batch:
        """The replies of all pairs, each better one before its worse one."""
        return packed_examples([reply for one in self.pairs for reply in (one.chosen, one.rejected)]).to(self.device)

    @property
    def references(self) -> Tensor:
        """Log-probabilities under the model that does not learn; [pairs, 2], the better reply first."""
        known = [(one.reference_chosen, one.reference_rejected) for one in self.pairs]
        return torch.tensor(known, dtype=torch.float32, device=self.device)

    def pieces(self, count: int, tokens: int | None) -> list[tuple[PairBatch, float]]:
        """Return about `count` parts of whole pairs, or more, each with its share of the pairs."""
        parts = share_out(self.pairs, count, tokens, by_length=True)
        return [(PairBatch(part, {}, self.device), len(part) / len(self.pairs)) for part in parts if part]

    def to(self, device: torch.device | str) -> PairBatch:
        """Return the batch on a device."""
        return PairBatch(self.pairs, self.metrics, device)


def preference_loss(
    chosen_P: Tensor,
    rejected_P: Tensor,
    reference_chosen_P: Tensor,
    reference_rejected_P: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each pair's loss, and the rewards of its better and its worse reply: beta log(p / p_reference).

    Args:
        chosen_P: log-probability of each better reply, summed over its tokens.
        rejected_P: of each worse one.
        reference_chosen_P: of each better one under the model that does not learn.
        reference_rejected_P: of each worse one.
        beta: how dear it is to leave that model.
        label_smoothing: chance that a pair is the wrong way round.
    Source: Rafailov et al. 2023 (arXiv 2305.18290) equation 7; label smoothing: Mitchell 2023, "A note on DPO with
        noisy preferences", equation 3.
    """
    rewards_chosen_P = beta * (chosen_P - reference_chosen_P)
    rewards_rejected_P = beta * (rejected_P - reference_rejected_P)
    margin_P = rewards_chosen_P - rewards_rejected_P
    loss_P = -(1 - label_smoothing) * F.logsigmoid(margin_P) - label_smoothing * F.logsigmoid(-margin_P)
    return loss_P, rewards_chosen_P, rewards_rejected_P


def reply_logprobs(
    model: Transformer, batch: Batch, most_logits: int | None = None, routing: Routing | None = None
) -> Tensor:
    """Return the log-probability of what is learnt in each segment, summed over its tokens; float32, [segments]."""
    hidden_TD = model(batch.tokens_T, batch.segments, routing=routing)
    learnt_T = batch.targets_T != IGNORED
    found_M = token_logprobs(model, hidden_TD[learnt_T], batch.targets_T[learnt_T], most_logits=most_logits)
    lengths = torch.tensor(batch.segments.lengths, device=found_M.device)
    owner_M = torch.repeat_interleave(lengths)[learnt_T]
    return torch.zeros(len(lengths), device=found_M.device).index_add(0, owner_M, found_M)


@dataclass(frozen=True)
class Dpo:
    """Direct preference optimisation.

    Args:
        beta: as of `preference_loss`.
        label_smoothing: as of `preference_loss`.
        most_logits: logits (tokens x vocabulary) in memory at once; None: all of a forward pass.
    """

    beta: float
    label_smoothing: float = 0.0
    most_logits: int | None = None

    def __call__(self, model: Transformer, batch: PairBatch) -> Loss:
        """Return the loss of a batch, with the rewards' margin and the share of pairs that are told apart rightly."""
        routing, packed = Routing(), batch.packed
        chosen_P, rejected_P = reply_logprobs(model, packed, self.most_logits, routing).view(-1, 2).unbind(1)
        reference = batch.references.unbind(1)
        loss_P, better_P, worse_P = preference_loss(chosen_P, rejected_P, *reference, self.beta, self.label_smoothing)
        figures = {
            "loss": float(loss_P.detach().mean()),
            "margin": float((better_P - worse_P).detach().mean()),
            "preferred": float((better_P > worse_P).float().mean()),
            "chosen_reward": float(better_P.detach().mean()),
            "rejected_reward": float(worse_P.detach().mean()),
        }
        counts = expert_counts(routing, model.config.n_routed_experts)
        read = (packed.segments.tokens, packed.segments.pairs, packed.learnt)
        return Loss(loss_P.mean(), figures, *read, counts=counts)
