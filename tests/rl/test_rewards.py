"""Rewards: right, well formed, and not too long."""

from __future__ import annotations

import pytest

from leanseek.engine.request import Output
from leanseek.envs.environment import Problem
from leanseek.evals.attempts import Attempt
from leanseek.messages import Message
from leanseek.rl.rewards import overlong, reward
from leanseek.settings import GrpoSettings


def test_the_penalty_grows_evenly_over_the_margin_and_no_further():
    found = [overlong(tokens, longest=20, margin=5) for tokens in (1, 15, 16, 18, 20, 40)]
    assert found == pytest.approx([0, 0, -0.2, -0.6, -1, -1])


def attempt_of(tokens: int, correct: bool, formed: bool) -> Attempt:
    output = Output("r", 0, [7] * tokens, "")
    return Attempt(Problem("x", 1, "?", {}, "?"), [5], Message("assistant", ""), output, {}, correct, formed)


@pytest.mark.parametrize(("correct", "formed", "tokens", "expected"), [(1, 1, 4, 1.5), (0, 1, 9, 0.0), (0, 0, 10, -1)])
def test_what_a_reply_earns(correct, formed, tokens, expected):
    settings = GrpoSettings(max_new_tokens=10, overlong_tokens=2, format_reward=0.5)
    assert reward(attempt_of(tokens, bool(correct), bool(formed)), settings) == expected
    assert reward(attempt_of(tokens, bool(correct), bool(formed)), GrpoSettings()) == correct
