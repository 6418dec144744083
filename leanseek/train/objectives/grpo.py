"""GRPO: groups of sampled replies -> clipped policy-gradient loss, per token, without a critic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from leanseek.model.experts import Routing
from leanseek.model.segments import Segments
from leanseek.model.transformer import Transformer
from leanseek.train.balance import expert_counts
from leanseek.train.objectives.loss import Loss


@dataclass(frozen=True, eq=False)
class Group:
    """One prompt and its sampled replies.

    Args:
        prompt: token ids.
        replies: token ids of each reply, its ending token included.
        logprobs: the engine's log-probability of each reply token, in nats.
        advantages: one per reply.
        experts: per reply, the routing of the prompt's and the reply's tokens but the last, [tokens, MoE layers, K];
            None: routing is not replayed.
    """

    prompt: Sequence[int]
    replies: Sequence[Sequence[int]]
    logprobs: Sequence[Sequence[float]]
    advantages: Sequence[float]
    experts: Sequence[Tensor] | None = None

    @property
    def tokens(self) -> int:
        """Tokens that the model reads for it: the prompt once, and each reply but its last token."""
        return len(self.prompt) + sum(len(reply) - 1 for reply in self.replies)


@dataclass(frozen=True, eq=False)
class GroupBatch:
    """Groups of one step; packed so that a group's replies share one pass over its prompt.

    Args:
        groups: those with something to learn; none where no group's replies differ in reward.
        metrics: how they came about, for the log.
        device: where the packed tensors go.
    """

    groups: Sequence[Group]
    metrics: Mapping[str, float] = field(default_factory=dict)
    device: torch.device | str = "cpu"

    @property
    def reply_tokens(self) -> int:
        """Tokens that the loss is over."""
        return sum(len(reply) for group in self.groups for reply in group.replies)

    @property
    def tokens(self) -> int:
        """Tokens that the model reads."""
        return sum(group.tokens for group in self.groups)

    def pieces(self, count: int, tokens: int | None) -> list[tuple[GroupBatch, float]]:
        """Return about `count` parts of whole groups, or more, so that each has about `tokens` tokens at most.

        Parts are cut where a group ends, nearest to an even share. Each comes with its share of the reply tokens.
        """
        if not self.groups:
            return []
        size = -(-self.tokens // count)
        if tokens is not None:
            size = min(size, tokens)
        parts: list[list[Group]] = [[]]
        total = 0
        for group in self.groups:
            if total + group.tokens / 2 > size * len(parts) and parts[-1]:
                parts.append([])
            parts[-1].append(group)
            total += group.tokens
        batches = [GroupBatch(part, {}, self.device) for part in parts]
        return [(batch, batch.reply_tokens / self.reply_tokens) for batch in batches]

    def to(self, device: torch.device | str) -> GroupBatch:
        """Return the batch on a device."""
        return GroupBatch(self.groups, self.metrics, device)

    @cached_property
    def segments(self) -> Segments:
        """Each group's prompt, then its replies, which continue it."""
        lengths: list[int] = []
        prefixes: list[int] = []
        for group in self.groups:
            prompt = len(lengths)
            lengths.append(len(group.prompt))
            prefixes.append(-1)
            # A reply's last token is predicted, never read; a reply of one token reads nothing.
            read = [len(reply) - 1 for reply in group.replies if len(reply) > 1]
            lengths += read
            prefixes += [prompt] * len(read)
        return Segments(tuple(lengths), tuple(prefixes), device=self.device)

    @cached_property
    def packed(self) -> Packed:
        """The tensors that the loss needs."""
        tokens: list[int] = []
        rows: list[int] = []  # whose hidden state predicts each reply token
        targets: list[int] = []
        old: list[float] = []
        advantages: list[float] = []
        experts: list[Tensor] = []
        for group in self.groups:
            tokens += group.prompt
            last_of_prompt = len(tokens) - 1
            if group.experts is not None:
                experts.append(group.experts[0][: len(group.prompt)])
            for i, reply in enumerate(group.replies):
                rows.append(last_of_prompt)
                rows += range(len(tokens), len(tokens) + len(reply) - 1)
                tokens += reply[:-1]
                targets += reply
                old += group.logprobs[i]
                advantages += [group.advantages[i]] * len(reply)
                if group.experts is not None:
                    experts.append(group.experts[i][len(group.prompt) :])
        device = self.device
        return Packed(
            torch.tensor(tokens, device=device),
            torch.tensor(rows, device=device),
            torch.tensor(targets, device=device),
            torch.tensor(old, dtype=torch.float32, device=device),
            torch.tensor(advantages, dtype=torch.float32, device=device),
            torch.cat(experts).to(device=device, dtype=torch.int64) if experts else None,
        )


@dataclass(frozen=True, eq=False)
class Packed:
    """A group batch as tensors: T tokens read, M reply tokens predicted.

    Args:
        tokens_T: what is read.
        rows_M: row of the hidden state that predicts each reply token.
        targets_M: the reply tokens.
        old_M: the engine's log-probabilities.
        advantages_M: of the reply that each token belongs to.
        replay_TNK: experts to use, or None.
    """

    tokens_T: Tensor
    rows_M: Tensor
    targets_M: Tensor
    old_M: Tensor
    advantages_M: Tensor
    replay_TNK: Tensor | None


@dataclass(frozen=True, eq=False)
class Grpo:
    """The token-level clipped loss; the old policy is the engine's, as it sampled.

    Args:
        clip_low, clip_high: the ratio to the old policy counts within 1 - clip_low .. 1 + clip_high.
        temperature: that the replies were sampled at.
        kl_weight: weight of the estimated KL to `reference`; 0: none.
        reference: the model that KL is measured to.
    Source: DeepSeekMath (arXiv 2402.03300) section 4.1; clip-higher and the sum over all tokens: DAPO
        (arXiv 2503.14476); keep-routing and the KL times the ratio: DeepSeek-V3.2 (arXiv 2512.02556) section 3.1.
    """

    clip_low: float
    clip_high: float
    temperature: float = 1.0
    kl_weight: float = 0.0
    reference: Transformer | None = None

    def __call__(self, model: Transformer, batch: GroupBatch) -> Loss:
        """Return the loss of a batch."""
        packed = batch.packed
        routing = Routing(replay_TNK=packed.replay_TNK, compare=packed.replay_TNK is not None)
        logprobs_M = self._logprobs(model, batch, routing)
        ratio_M = torch.exp(logprobs_M - packed.old_M)
        clipped_M = ratio_M.clamp(1 - self.clip_low, 1 + self.clip_high)
        gains_M = torch.minimum(ratio_M * packed.advantages_M, clipped_M * packed.advantages_M)
        total = -gains_M.mean()
        with torch.no_grad():
            gap_M = (logprobs_M - packed.old_M).abs()
            metrics = {
                "loss": float(total),
                "logprob_gap": float(gap_M.max()),
                "logprob_gap_mean": float(gap_M.mean()),
                "clip_fraction": float((ratio_M != clipped_M).float().mean()),
                "entropy": -float(logprobs_M.mean()),  # estimated on the samples themselves
            }
            if routing.agreed:
                metrics["routing_agreement"] = float(torch.stack(routing.agreed).float().mean())
        if self.kl_weight > 0 and self.reference is not None:
            with torch.no_grad():
                reference_M = self._logprobs(self.reference, batch, Routing(replay_TNK=packed.replay_TNK))
            gap_M = reference_M - logprobs_M
            kl = (ratio_M * (torch.exp(gap_M) - gap_M - 1)).mean()
            total = total + self.kl_weight * kl
            metrics["kl"] = float(kl.detach())
        counts = expert_counts(routing, model.config.n_routed_experts)
        segments = batch.segments
        references = int("kl" in metrics)
        return Loss(
            total, metrics, segments.tokens, segments.pairs, batch.reply_tokens, references=references, counts=counts
        )

    def _logprobs(self, model: Transformer, batch: GroupBatch, routing: Routing) -> Tensor:
        """Return the log-probability of each reply token, as sampled at the temperature."""
        packed = batch.packed
        hidden_TD = model(packed.tokens_T, batch.segments, routing=routing)
        logits_MW = model.logits(hidden_TD.index_select(0, packed.rows_M)).float()
        if self.temperature != 1.0:
            logits_MW = logits_MW / self.temperature
        return -F.cross_entropy(logits_MW, packed.targets_M, reduction="none")
