"""GRPO: groups of sampled replies -> policy-gradient loss, without a critic; in all its forms."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from leanseek.model.experts import Routing
from leanseek.model.segments import Segments
from leanseek.model.transformer import Transformer
from leanseek.train.balance import expert_counts
from leanseek.train.objectives.cut import Cut, share_out
from leanseek.train.objectives.forms import Average, Ratio
from leanseek.train.objectives.logprobs import Support, token_logprobs
from leanseek.train.objectives.loss import Loss
from leanseek.train.objectives.surrogate import Replies, average, gains, on_policy, ratios, unbiased_kl

Item = TypeVar("Item")


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
        supports: per reply, for each token those that could have been drawn in its place, where sampling cut the
            distribution; the log-probabilities are then of the shares among these. None: any token.
        sampled: per reply, which of its tokens the model drew; the others, results of tools, are read and not learnt.
            The last is drawn. None: all were.
    """

    prompt: Sequence[int]
    replies: Sequence[Sequence[int]]
    logprobs: Sequence[Sequence[float]]
    advantages: Sequence[float]
    experts: Sequence[Tensor] | None = None
    supports: Sequence[Sequence[Sequence[int]]] | None = None
    sampled: Sequence[Sequence[bool]] | None = None

    def drawn(self, reply: int, values: Sequence[Item]) -> Sequence[Item]:
        """Return, of values that belong to a reply's tokens, those of the tokens that the loss is over."""
        return values if self.sampled is None else list(itertools.compress(values, self.sampled[reply]))

    @property
    def lengths(self) -> list[int]:
        """Of each reply, the tokens that the loss is over."""
        if self.sampled is None:
            return [len(reply) for reply in self.replies]
        return [sum(flags) for flags in self.sampled]

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
        cut: into which optimiser steps and parts it goes.
    """

    groups: Sequence[Group]
    metrics: Mapping[str, float] = field(default_factory=dict)
    device: torch.device | str = "cpu"
    cut: Cut = field(default_factory=Cut)

    @property
    def reply_tokens(self) -> int:
        """Tokens that the loss is over."""
        return sum(sum(group.lengths) for group in self.groups)

    @property
    def tokens(self) -> int:
        """Tokens that the model reads."""
        return sum(group.tokens for group in self.groups)

    def updates(self) -> list[GroupBatch]:
        """Return what each optimiser step is over: whole groups, every one once in each epoch."""
        cut = self.cut
        if cut.epochs == cut.minibatches == 1:
            return [self]
        parts = [self.groups[at :: cut.minibatches] for at in range(cut.minibatches)]
        return [replace(self, groups=part) for _ in range(cut.epochs) for part in parts if part]

    def pieces(self, count: int, tokens: int | None) -> list[tuple[GroupBatch, float]]:
        """Return about `count` parts of whole groups, or more, so that each has about `tokens` tokens at most.

        Each comes with its share of what the loss is averaged over: reply tokens, or replies.
        """
        parts = share_out(self.groups, count, tokens, by_length=self.cut.by_length)
        batches = [replace(self, groups=part, metrics={}) for part in parts]
        return [(batch, batch._weight / self._weight) for batch in batches]

    def to(self, device: torch.device | str) -> GroupBatch:
        """Return the batch on a device."""
        return replace(self, device=device)

    @property
    def _weight(self) -> int:
        return sum(len(group.replies) for group in self.groups) if self.cut.by_reply else self.reply_tokens

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
        supports: list[Sequence[int]] = []
        for group in self.groups:
            tokens += group.prompt
            last_of_prompt = len(tokens) - 1
            if group.experts is not None:
                experts.append(group.experts[0][: len(group.prompt)])
            for i, reply in enumerate(group.replies):
                first = len(tokens) - 1
                places = [last_of_prompt, *range(first + 1, first + len(reply))]
                tokens += reply[:-1]
                rows += group.drawn(i, places)
                targets += group.drawn(i, reply)
                old += group.drawn(i, group.logprobs[i])
                advantages += [group.advantages[i]] * (len(rows) - len(advantages))
                if group.experts is not None:
                    experts.append(group.experts[i][len(group.prompt) :])
                if group.supports is not None:
                    supports += group.drawn(i, group.supports[i])
        device = self.device
        return Packed(
            torch.tensor(tokens, device=device),
            torch.tensor(rows, device=device),
            torch.tensor(targets, device=device),
            torch.tensor(old, dtype=torch.float32, device=device),
            torch.tensor(advantages, dtype=torch.float32, device=device),
            torch.cat(experts).to(device=device, dtype=torch.int64) if experts else None,
            Replies.of([length for group in self.groups for length in group.lengths], device),
            _support(supports, device) if supports else None,
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
        replies: which tokens form a reply.
        support: what each reply token's place could have drawn; None: any token.
    """

    tokens_T: Tensor
    rows_M: Tensor
    targets_M: Tensor
    old_M: Tensor
    advantages_M: Tensor
    replay_TNK: Tensor | None
    replies: Replies
    support: Support | None


def _support(places: Sequence[Sequence[int]], device: torch.device | str) -> Support:
    tokens = [token for place in places for token in place]
    counts = [len(place) for place in places]
    return Support(torch.tensor(tokens, device=device), torch.tensor(counts, device=device))


@dataclass(frozen=True, eq=False)
class Grpo:
    """The clipped loss; the old policy is the engine's, as it sampled. The defaults are DAPO's form.

    Args:
        clip_low, clip_high: the ratio to the old policy counts within 1 - clip_low .. 1 + clip_high.
        temperature: that the replies were sampled at.
        kl_weight: weight of the estimated KL to `reference`; 0: none.
        reference: the model that KL is measured to.
        ratio, average: as `forms.Form` has them.
        longest: what "constant" divides a reply's sum by, in tokens.
        off_policy: from which distance on bad replies are left out, in nats a token; None: none is.
        most_logits: logits in memory at once; None: all.
        stale: whether the model has moved on since it sampled: the distance is then told as `stale_gap`, not as the
            engine's `logprob_gap`, and the routing as `stale_routing`.
    Source: DeepSeekMath (arXiv 2402.03300) section 4.1; clip-higher and the sum over all tokens: DAPO
        (arXiv 2503.14476); keep-routing, keep-sampling-mask, the KL times the ratio and the mask of bad replies:
        DeepSeek-V3.2 (arXiv 2512.02556) section 3.1. The other forms: `forms.FORMS`.
    """

    clip_low: float
    clip_high: float
    temperature: float = 1.0
    kl_weight: float = 0.0
    reference: Transformer | None = None
    ratio: Ratio = "token"
    average: Average = "tokens"
    longest: int = 1
    off_policy: float | None = None
    most_logits: int | None = None
    stale: bool = False

    def __call__(self, model: Transformer, batch: GroupBatch) -> Loss:
        """Return the loss of a batch."""
        packed = batch.packed
        routing = Routing(replay_TNK=packed.replay_TNK, compare=packed.replay_TNK is not None)
        logprobs_M = self._logprobs(model, batch, routing)
        ratio_M = ratios(logprobs_M, packed.old_M, packed.replies, self.ratio)
        clipped_M = ratio_M.clamp(1 - self.clip_low, 1 + self.clip_high)
        gains_M = gains(self.ratio, ratio_M, clipped_M, logprobs_M, packed.advantages_M)
        kept_M = None
        if self.off_policy is not None:
            kept_M = on_policy(logprobs_M, packed.old_M, packed.advantages_M, packed.replies, self.off_policy)
            gains_M = gains_M * kept_M
        total = -self._average(gains_M, packed)
        gap, agreement = ("stale_gap", "stale_routing") if self.stale else ("logprob_gap", "routing_agreement")
        with torch.no_grad():
            gap_M = (logprobs_M - packed.old_M).abs()
            metrics = {
                "loss": float(total),
                gap: float(gap_M.max()),
                f"{gap}_mean": float(gap_M.mean()),
                "clip_fraction": float((ratio_M != clipped_M).float().mean()),
                "entropy": -float(logprobs_M.mean()),  # estimated on the samples themselves
            }
            if kept_M is not None:
                metrics["off_policy_fraction"] = float(1 - packed.replies.mean(kept_M).mean())
            if routing.agreed:
                metrics[agreement] = float(torch.stack(routing.agreed).float().mean())
        if self.kl_weight > 0 and self.reference is not None:
            with torch.no_grad():
                reference_M = self._logprobs(self.reference, batch, Routing(replay_TNK=packed.replay_TNK))
            if self.ratio == "reply":
                ratio_M = ratios(logprobs_M, packed.old_M, packed.replies, "token")
            kl = self._average(unbiased_kl(ratio_M, logprobs_M, reference_M), packed)
            total = total + self.kl_weight * kl
            metrics["kl"] = float(kl.detach())
        counts = expert_counts(routing, model.config.n_routed_experts)
        segments = batch.segments
        references = int("kl" in metrics)
        return Loss(
            total, metrics, segments.tokens, segments.pairs, batch.reply_tokens, references=references, counts=counts
        )

    def _average(self, values_M: Tensor, packed: Packed) -> Tensor:
        return average(values_M, packed.replies, self.average, self.longest)

    def _logprobs(self, model: Transformer, batch: GroupBatch, routing: Routing) -> Tensor:
        """Return the log-probability of each reply token, as sampled."""
        packed = batch.packed
        hidden_TD = model(packed.tokens_T, batch.segments, routing=routing)
        return token_logprobs(
            model,
            hidden_TD.index_select(0, packed.rows_M),
            packed.targets_M,
            self.temperature,
            most_logits=self.most_logits,
            support=packed.support,
        )
