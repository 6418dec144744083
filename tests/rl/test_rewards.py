"""Rewards: right, well formed, and not too long."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from leanseek.engine.request import Output
from leanseek.envs.environment import Problem
from leanseek.evals.attempts import Attempt
from leanseek.messages import Message
from leanseek.rl.rewards import overlong, reward
from leanseek.sections.grpo import GrpoSettings


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


def test_how_far_an_episode_gets_counts_where_it_is_asked_for():
    half = replace(attempt_of(4, False, True), rewards={"correct": 0.0, "format": 1.0, "progress": 0.5})
    assert reward(half, GrpoSettings()) == 0.0 and reward(half, GrpoSettings(progress_reward=0.4)) == 0.2
    assert reward(attempt_of(4, True, True), GrpoSettings(progress_reward=0.4)) == 1.0, "a task without it"


@pytest.mark.parametrize("price", [0.2, 0.5, 3.0])
def test_length_orders_replies_as_effort_wants_and_never_a_wrong_one_before_a_right_one(price):
    settings = GrpoSettings(max_new_tokens=100, length_reward=price)

    def earned(tokens: int, correct: bool, effort: str | None) -> float:
        return reward(replace(attempt_of(tokens, correct, True), effort=effort), settings)

    for effort in ("low", "high", "max"):
        short, long = earned(10, True, effort), earned(100, True, effort)
        assert short > long > earned(1, False, effort), "shorter is better, and right is better still"
        assert earned(10, False, effort) == earned(90, False, effort) == 0, "brevity does not excuse"
    gaps = {effort: earned(10, True, effort) - earned(100, True, effort) for effort in ("low", "high", "max")}
    if price <= 0.5:  # no cap is reached
        assert gaps["low"] == pytest.approx(0.9 * price)
        assert gaps["high"] / gaps["low"] == pytest.approx(math.exp(-25 / 15))
        assert gaps["max"] / gaps["low"] == pytest.approx(math.exp(-50 / 15))
    assert earned(100, True, None) == 1.0, "a prompt without an effort costs nothing"


def test_language_and_rubric_are_added():
    reply = Message("assistant", "4", "two да")
    one = replace(attempt_of(4, True, True), reply=reply, output=Output("r", 0, [7], "", finish_reason="stop"))
    settings = GrpoSettings(language="en", language_reward=0.2, rubric={"ended": 0.1, "fresh": 0.1, "leads": 5.0})
    assert reward(one, settings) == pytest.approx(1 + 0.2 * 0.5 + 0.2)
