from __future__ import annotations

import random

from leanseek.envs.environment import Problem
from leanseek.envs.running_total import RunningTotal

TASK = RunningTotal()
ONE = Problem("running_total", 3, "", {"start": 56, "steps": (2, 7, 9), "answer": 74}, "")
OTHER = Problem("running_total", 3, "", {"start": 56, "steps": (2, 9, 7), "answer": 74}, "")


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
    assert TASK.solution(ONE, random.Random(0)).reasoning_content.count("\n") == 2


def test_the_audit_wants_every_step_in_order():
    lines = TASK.solution(ONE, random.Random(0)).reasoning_content.split("\n")
    assert TASK.audit(ONE, "\n".join(lines))
    assert not TASK.audit(ONE, "\n".join(reversed(lines)))
    assert not TASK.audit(ONE, "\n".join(lines[1:]))
    # Thinking that is right in itself, about other numbers.
    assert not TASK.audit(OTHER, "\n".join(lines))
