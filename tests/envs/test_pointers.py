from __future__ import annotations

import random

import pytest

from leanseek.envs.environment import Problem
from leanseek.envs.pointers import Pointers

TASK = Pointers()
ONE = Problem("pointers", 3, "", {"table": {17: 42, 42: 8, 8: 91, 5: 17}, "start": 17, "answer": 91}, "")


def test_walks_meet_no_number_twice_and_need_every_step():
    rng = random.Random(0)
    for _ in range(200):
        problem = TASK.draw(5, rng)
        at, met = problem.data["start"], set()
        for _ in range(5):
            met.add(at)
            at = problem.data["table"][at]
            assert at not in met
        assert at == problem.data["answer"] and at in problem.data["table"]


def test_the_key_does_not_depend_on_the_order_of_the_rows():
    problem = TASK.draw(3, random.Random(0))
    rows = problem.prompt.split("\n")[:-1]
    assert sorted(rows) == sorted(problem.key.split()[: len(rows)])


def test_a_solution_takes_a_line_per_step():
    assert TASK.solution(ONE, random.Random(0)).reasoning_content == "1 17:42\n2 42:8\n3 8:91"


@pytest.mark.parametrize(
    ("text", "sound"),
    [
        ("1 17:42\n2 42:8\n3 8:91", True),
        ("2 17:8\n3 8:91", False),  # two steps in a line
        ("1 17:8\n2 8:91", False),
        ("1 17:42\n2 42:8", False),
        ("1 5:17\n2 17:42\n3 42:8", False),
        ("1 17:42\n1 42:8\n3 8:91", False),
        ("1 17:42\n2 42:8\n3 8:91\n4 91:91", False),
        ("9 17:42", False),
        ("1 17:42\n2 42:٨\n3 8:91", False),  # a digit, but not one that models write
    ],
)
def test_the_audit_follows_the_table(text: str, sound: bool):
    assert TASK.audit(ONE, text) is sound
