from __future__ import annotations

import random

import pytest

from leanseek.envs.environment import Problem
from leanseek.envs.sorting import Sorting

TASK = Sorting()
ONE = Problem("sorting", 3, "", {"numbers": (17, 8, 42), "answer": "8 17 42"}, "")


def test_the_answer_is_in_order():
    rng = random.Random(0)
    for _ in range(200):
        problem = TASK.draw(6, rng)
        assert problem.data["answer"].split() == [str(n) for n in sorted(problem.data["numbers"])]


def test_a_solution_takes_a_line_per_number():
    assert TASK.solution(ONE, random.Random(0)).reasoning_content == "b8=8 17\nc42=8 17 42"


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        ("b8=8 17\nc42=8 17 42", True),
        ("b8 c42=8 17 42", False),  # two steps in a line
        ("b8=17 8\nc42=8 17 42", False),
        ("c42=17 42\nb8=8 17 42", False),
        ("b8=8 17", False),
        ("b9=9 17\nc42=9 17 42", False),
        ("b8 c42 d1=1 8 17 42", False),
        ("b8=8 17\nc42=8 42", False),
        ("b٨=8 17\nc42=8 17 42", False),  # a digit, but not one that models write
    ],
)
def test_the_audit_wants_every_number_in_its_place(text: str, sound: bool):
    assert TASK.audit(ONE, text) is sound
