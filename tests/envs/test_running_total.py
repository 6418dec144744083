from __future__ import annotations

import random

import pytest

from leanseek.envs.environment import Problem
from leanseek.envs.running_total import RunningTotal

TASK = RunningTotal()
ONE = Problem("running_total", 3, "", {"start": 56, "steps": (2, -7, 9), "answer": 60}, "")
OTHER = Problem("running_total", 3, "", {"start": 56, "steps": (2, 9, -7), "answer": 60}, "")


def test_totals_stay_within_two_digits_and_follow_from_the_steps():
    rng = random.Random(0)
    for _ in range(300):
        problem = TASK.draw(TASK.levels[-1], rng)
        total = problem.data["start"]
        for step in problem.data["steps"]:
            total += step
            assert 0 <= total <= 99
        assert total == problem.data["answer"] and str(problem.data["start"]) in problem.prompt


def test_a_solution_takes_a_line_per_step():
    assert TASK.solution(ONE, random.Random(0)).reasoning_content == "56+2=58\n58-7=51\n51+9=60"


def test_the_audit_wants_every_step_in_order():
    lines = TASK.solution(ONE, random.Random(0)).reasoning_content.split("\n")
    assert TASK.audit(ONE, "\n".join(lines))
    assert not TASK.audit(ONE, "\n".join(reversed(lines)))
    assert not TASK.audit(ONE, "\n".join(lines[1:]))
    # Thinking that is right in itself, about other numbers.
    assert not TASK.audit(OTHER, "\n".join(lines))


@pytest.mark.parametrize(
    "text",
    [
        "56+2-7=51\n51+9=60",  # two steps in a line
        "56+2=58\n58-7=51",
        "56+2=58\n58-7=51\n51+9=60\n60+0=60",
        "56+2=58\n58-7=50\n50+9=59",  # a wrong difference
        "56+2=58\n57-7=50\n51+9=60",  # copied wrong
        "56+2=58\n58+7=65\n65+9=74",  # the wrong sign
        "56+٢=58\n58-7=51\n51+9=60",  # a digit, but not one that models write
    ],
)
def test_the_audit_stops_at_the_first_fault(text: str):
    assert not TASK.audit(ONE, text)
