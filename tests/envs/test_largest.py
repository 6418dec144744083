from __future__ import annotations

import random

import pytest

from leanseek.envs.environment import Problem
from leanseek.envs.largest import Largest

TASK = Largest()
ONE = Problem("largest", 3, "", {"numbers": (17, 42, 8), "answer": 42}, "")
OTHER = Problem("largest", 3, "", {"numbers": (17, 42, 9), "answer": 42}, "")


def test_numbers_are_distinct_and_the_answer_is_the_largest():
    rng = random.Random(0)
    for _ in range(300):
        problem = TASK.draw(TASK.levels[-1], rng)
        numbers = problem.data["numbers"]
        assert len(set(numbers)) == TASK.levels[-1] and problem.data["answer"] == max(numbers)


def test_a_solution_takes_a_line_per_number():
    assert TASK.solution(ONE, random.Random(0)).reasoning_content == "17,42=42\n42,8=42"


def test_the_audit_wants_every_number_in_order():
    lines = TASK.solution(ONE, random.Random(0)).reasoning_content.split("\n")
    assert TASK.audit(ONE, "\n".join(lines))
    assert not TASK.audit(ONE, "\n".join(reversed(lines)))
    assert not TASK.audit(ONE, "\n".join(lines[1:]))
    # Thinking that is right in itself, about other numbers.
    assert not TASK.audit(OTHER, "\n".join(lines))


@pytest.mark.parametrize(
    "text",
    [
        "17,42,8=42",  # two steps in a line
        "17,42=42",
        "17,42=42\n42,8=42\n42,8=42",
        "17,42=17\n17,8=17",  # the smaller one
        "17,42=42\n17,8=17",  # copied wrong
        "17,42=42\n42,9=42",
        "17,42=42\n42,٨=42",  # a digit, but not one that models write
    ],
)
def test_the_audit_stops_at_the_first_fault(text: str):
    assert not TASK.audit(ONE, text)
