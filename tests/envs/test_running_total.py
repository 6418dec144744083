from __future__ import annotations

import random

import pytest

from leanseek.envs.environment import Problem
from leanseek.envs.running_total import RunningTotal

TASK = RunningTotal()
ONE = Problem("running_total", 3, "", {"start": 56, "steps": (2, -7, 9), "answer": 60}, "")


def test_totals_stay_within_two_digits_and_follow_from_the_steps():
    rng = random.Random(0)
    for _ in range(300):
        problem = TASK.draw(6, rng)
        total = problem.data["start"]
        for step in problem.data["steps"]:
            total += step
            assert 0 <= total <= 99
        assert total == problem.data["answer"] and f"start {problem.data['start']}" in problem.prompt


def test_a_solution_takes_a_line_per_step_and_one_for_all_in_the_head():
    assert TASK.solution(ONE, random.Random(0)).reasoning_content == "a 56 +2 =58\nb 58 -7 =51\nc 51 +9 =60"
    assert TASK.solution(ONE, random.Random(0), skip=1.0).reasoning_content == "a b c 56 +2 -7 +9 =60"


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        ("a b 56 +2 -7 =51\nc 51 +9 =60", True),
        ("a 56 +2 =58\nc 58 +9 =67\nb 67 -7 =60", False),  # out of order, right in the end
        ("a 56 +2 =58\nb 58 -7 =51", False),
        ("a 56 +2 =57\nb 57 -7 =50\nc 50 +9 =59", False),
        ("a 56 +3 =59\nb 59 -7 =52\nc 52 +9 =61", False),
        ("٥", False),
    ],
)
def test_the_audit_wants_every_step_in_order(text: str, sound: bool):
    assert TASK.audit(ONE, text) is sound
