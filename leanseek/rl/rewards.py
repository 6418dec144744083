"""Rewards: what a reply earns, beyond being right, and what it loses for its length."""

from __future__ import annotations

import math

from leanseek.envs.environment import Environment
from leanseek.evals.attempts import Attempt
from leanseek.rl.language import consistency
from leanseek.rl.rubric import graded
from leanseek.sections.grpo import GrpoSettings
from leanseek.tokens.effort import BUDGETS

# Over how much more budget a token's price falls by e (the report names no figure); the most that length can cost, so
# that a right answer is always worth more than a wrong one.
EFFORT_DECAY = 15.0
DEAREST = 0.5


def reward(attempt: Attempt, settings: GrpoSettings, environment: Environment | None = None) -> float:
    """Return 1 for a right answer, more for form, progress, language, rubric and judge, and less for length.

    How much that is, settings have.

    Args:
        attempt: the reply.
        settings: of the stage.
        environment: the problem's, which a rubric may ask whether the thinking is right.
    """
    earned = float(attempt.correct) + settings.format_reward * float(attempt.formed)
    if settings.progress_reward:
        earned += settings.progress_reward * attempt.rewards.get("progress", 0.0)
    if settings.language is not None:
        earned += settings.language_reward * consistency(attempt.reply, settings.language)
    if settings.judge is not None:
        earned += settings.judge_reward * attempt.rewards.get("judge", 0.0)
    if settings.rubric:
        earned += graded(attempt, settings.rubric, environment)
    # Among wrong replies brevity would be all that counts, and a model that is often wrong would unlearn to think.
    if settings.length_reward and attempt.effort is not None and attempt.correct:
        share = len(attempt.output.token_ids) / settings.max_new_tokens
        earned += thrift(share, attempt.effort, settings.length_reward)
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


def thrift(share: float, effort: str, price: float) -> float:
    """Return what a right reply's length costs: -min(DEAREST, k(b) share), k(b) = price exp(-(b - b_low) / tau).

    Args:
        share: the reply's tokens over the most that it may have.
        effort: low, high or max; its budget is b.
        price: of the longest reply at low effort.
    Source: DeepSeek-V4.1's report; tau is EFFORT_DECAY, ours.
    """
    dearness = price * math.exp(-(BUDGETS[effort] - BUDGETS["low"]) / EFFORT_DECAY)
    return -min(DEAREST, dearness * share)
