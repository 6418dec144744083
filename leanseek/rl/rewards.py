"""Rewards: what a reply earns, beyond being right, and what it loses for its length."""

from __future__ import annotations

from leanseek.evals.attempts import Attempt
from leanseek.settings import GrpoSettings


def reward(attempt: Attempt, settings: GrpoSettings) -> float:
    """Return 1 for a right answer, the bonus for a well-formed reply, and the penalty for one that is too long."""
    earned = float(attempt.correct) + settings.format_reward * float(attempt.formed)
    if settings.overlong_tokens:
        earned += overlong(len(attempt.output.token_ids), settings.max_new_tokens, settings.overlong_tokens)
    return earned


def overlong(tokens: int, longest: int, margin: int) -> float:
    """Return DAPO's soft penalty: 0 up to longest - margin, from there on falling evenly to -1 at the longest.

    Args:
        tokens: of the reply.
        longest: tokens that a reply may have.
        margin: over how many of them, the last ones, the penalty grows.
    Source: DAPO (arXiv 2503.14476) section 3.4.
    """
    return -min(1.0, max(0.0, (tokens - (longest - margin)) / margin))
