"""Proportion: a share with its 95% interval; and pass@k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Two-sided 95% of the normal distribution.
Z = 1.959964


@dataclass(frozen=True)
class Proportion:
    """A share between 0 and 1 and where it lies with 95% confidence.

    Args:
        share: the estimate.
        count: how many independent things it is over.
        interval: lower and upper end.
    """

    share: float
    count: int
    interval: tuple[float, float]

    @classmethod
    def of(cls, right: int, count: int) -> Proportion:
        """Return `right` of `count`; of none, the share is 0 and could be anything.

        Source: Wilson (1927); unlike the normal interval it stays within [0, 1] and is sound at 0 and 1.
        """
        return cls(right / count if count else 0.0, count, wilson(right / count if count else 0.0, count))

    @classmethod
    def mean(cls, values: Sequence[float]) -> Proportion:
        """Return the mean of values in [0, 1], one per problem, with an interval over problems.

        The interval is Wilson's for as many yes-or-no problems as would spread as little as these values do.
        """
        count = len(values)
        if not count:
            return cls.of(0, 0)
        share = sum(values) / count
        variance = sum((value - share) ** 2 for value in values) / count
        # Values in [0, 1] spread at most as much as yes and no: `binary / variance` is at least 1.
        binary = share * (1 - share)
        alike = count * binary / variance if variance > 0 else count
        return cls(share, count, wilson(share, alike))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.share:.1%} ({low:.1%} to {high:.1%}, n = {self.count})"


def wilson(share: float, count: float) -> tuple[float, float]:
    """Return Wilson's 95% interval of a share of `count`; (0, 1) for none."""
    if count <= 0:
        return (0.0, 1.0)
    centre = (share + Z * Z / (2 * count)) / (1 + Z * Z / count)
    reach = Z / (1 + Z * Z / count) * math.sqrt(share * (1 - share) / count + Z * Z / (4 * count * count))
    # The share lies within by algebra; rounding must not push it out at 0 and 1.
    return (max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach)))


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Return the chance that at least one of k replies is right, where `right` of `samples` were; unbiased.

    Source: Chen et al. 2021 (Codex), arXiv 2107.03374 section 2.1: 1 - C(n - c, k) / C(n, k).
    """
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)
