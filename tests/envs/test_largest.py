from __future__ import annotations

import random

import pytest

from leanseek.envs.environment import Problem
from leanseek.envs.largest import Largest

TASK = Largest()
ONE = Problem("largest", 3, "", {"numbers": (17, 42, 8), "answer": 42}, "")


def test_numbers_are_distinct_and_the_answer_is_the_largest():
    rng = random.Random(0)
    for _ in range(300):
        problem = TASK.draw(7, rng)
        numbers = problem.data["numbers"]
        assert len(set(numbers)) == 7 and problem.data["answer"] == max(numbers)


def test_a_solution_takes_a_line_per_number_and_one_for_all_in_the_head():
    assert TASK.solution(ONE, random.Random(0)).reasoning_content == "b 42 |17 =42\nc 8 |42 =42"
    assert TASK.solution(ONE, random.Random(0), skip=1.0).reasoning_content == "b c 42 8 |17 =42"


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        ("b 42 |17 =42\nc 8 |42 =42", True),
        ("b 42 |17 =17\nc 8 |17 =42", False),
        ("b 41 |17 =41\nc 8 |41 =42", False),
        ("c 8 |17 =17\nb 42 |17 =42", False),
        ("b 42 |17 =42", False),
    ],
)
def test_the_audit_wants_every_number_in_order(text: str, sound: bool):
    assert TASK.audit(ONE, text) is sound
