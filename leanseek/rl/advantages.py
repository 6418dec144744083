"""Advantages: how much better a reply is than its group's mean."""

from __future__ import annotations

from collections.abc import Sequence


def group_advantages(rewards: Sequence[float], *, normalise: bool = True) -> list[float] | None:
    """Return (reward - mean) / standard deviation of a group, or None where all rewards are equal.

    A group without variance teaches nothing: it is left out, as DAPO's dynamic sampling does.

    Args:
        rewards: of the replies to one prompt.
        normalise: whether to divide by the standard deviation, which gives prompts that are nearly always or nearly
            never solved more weight; Dr. GRPO does not.
    Source: DeepSeekMath (arXiv 2402.03300) section 4.1; without the division: Dr. GRPO (arXiv 2503.20783) section 3.2.
    """
    mean = sum(rewards) / len(rewards)
    variance = sum((reward - mean) ** 2 for reward in rewards) / len(rewards)
    if variance <= 1e-12:
        return None
    if not normalise:
        return [reward - mean for reward in rewards]
    return [(reward - mean) / variance**0.5 for reward in rewards]
