"""Surrogate: what a policy gradient maximises, token by token, in GRPO's forms; tensors in, tensors out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from leanseek.train.objectives.forms import Average, Ratio


@dataclass(frozen=True, eq=False)
class Replies:
    """Which predicted tokens form a reply.

    Args:
        reply_M: the reply that each token belongs to, int64, in order.
        lengths_S: tokens of each reply, float32.
    """

    reply_M: Tensor
    lengths_S: Tensor

    @classmethod
    def of(cls, lengths: list[int], device: torch.device | str = "cpu") -> Replies:
        """Return replies of these lengths, one after the other."""
        lengths_S = torch.tensor(lengths, dtype=torch.int64, device=device)
        return cls(torch.repeat_interleave(lengths_S, output_size=sum(lengths)), lengths_S.float())

    def mean(self, values_M: Tensor) -> Tensor:
        """Return each reply's mean, [S]."""
        return values_M.new_zeros(len(self.lengths_S)).index_add(0, self.reply_M, values_M) / self.lengths_S


def ratios(logprobs_M: Tensor, old_M: Tensor, replies: Replies, kind: Ratio) -> Tensor:
    """Return how much more likely each token is than it was; under "reply", how much its reply is, per token.

    Args:
        logprobs_M: of the policy that learns.
        old_M: of the policy that sampled.
        replies: for "reply".
        kind: as `Form.ratio`.
    Source: of a whole reply, GSPO (arXiv 2507.18071) section 4.1.
    """
    if kind == "reply":
        return torch.exp(replies.mean(logprobs_M - old_M)).index_select(0, replies.reply_M)
    return torch.exp(logprobs_M - old_M)


def gains(kind: Ratio, ratio_M: Tensor, clipped_M: Tensor, logprobs_M: Tensor, advantages_M: Tensor) -> Tensor:
    """Return what each token adds to the objective.

    Args:
        kind: as `Form.ratio`.
        ratio_M, clipped_M: to the old policy, as it is and within its bounds.
        logprobs_M: of the policy that learns.
        advantages_M: of each token's reply.
    Source: the lesser of the two: PPO (arXiv 1707.06347) section 3; a fixed weight: CISPO, MiniMax-M1 (arXiv
        2506.13585) section 3.1.
    """
    if kind == "weight":
        return clipped_M.detach() * advantages_M * logprobs_M
    return torch.minimum(ratio_M * advantages_M, clipped_M * advantages_M)


def on_policy(logprobs_M: Tensor, old_M: Tensor, advantages_M: Tensor, replies: Replies, delta: float) -> Tensor:
    """Return 1 for tokens that are learnt from and 0 for those of bad replies that the policy has moved away from.

    A reply is left out where its advantage is negative and its mean log-ratio, old over present, exceeds `delta`: such
    a reply's own tokens say little any more about what the policy does wrong now.

    Args:
        logprobs_M: of the policy that learns; no gradient passes.
        old_M: the engine's, so that a mismatch between engine and trainer counts too.
        advantages_M: of each token's reply.
        replies: whose tokens are whose.
        delta: in nats a token.
    Source: DeepSeek-V3.2 (arXiv 2512.02556) section 3.1.
    """
    gone_S = replies.mean(old_M - logprobs_M.detach()) > delta
    return (~(gone_S.index_select(0, replies.reply_M) & (advantages_M < 0))).to(logprobs_M.dtype)


def unbiased_kl(ratio_M: Tensor, logprobs_M: Tensor, reference_M: Tensor) -> Tensor:
    """Return the estimated KL to a reference for each token: the k3 estimator times the ratio to the old policy.

    The ratio makes it unbiased although the old policy sampled, in its gradient too.

    Args:
        ratio_M: of each token to the policy that sampled.
        logprobs_M: of the policy that learns.
        reference_M: of the reference.
    Source: DeepSeek-V3.2 (arXiv 2512.02556) section 3.1; k3: Schulman 2020, "Approximating KL divergence".
    """
    gap_M = reference_M - logprobs_M
    return ratio_M * (torch.exp(gap_M) - gap_M - 1)


def average(values_M: Tensor, replies: Replies, kind: Average, longest: int) -> Tensor:
    """Return the mean over tokens, over replies' means, or over replies' sums divided by the longest reply.

    Args:
        values_M: one per token.
        replies: whose tokens are whose.
        kind: as `Form.average`.
        longest: the constant of "constant", in tokens.
    Source: over all tokens: DAPO (arXiv 2503.14476) section 3.3; by a constant: Dr. GRPO (arXiv 2503.20783) section
        3.2.
    """
    if kind == "replies":
        return replies.mean(values_M).mean()
    if kind == "constant":
        return values_M.sum() / (len(replies.lengths_S) * longest)
    return values_M.mean()
