from __future__ import annotations

import random

import pytest

from leanseek.envs.environment import Problem
from leanseek.envs.grid_walk import SIDE, GridWalk

TASK = GridWalk()
ONE = Problem("grid_walk", 2, "", {"start": (6, 4), "moves": (("up", 3), ("left", 2)), "answer": "4,7"}, "")
OTHER = Problem("grid_walk", 2, "", {"start": (6, 4), "moves": (("left", 2), ("up", 3)), "answer": "4,7"}, "")


def test_walks_stay_on_the_grid():
    rng = random.Random(0)
    for _ in range(300):
        problem = TASK.draw(TASK.levels[-1], rng)
        x, y = problem.data["start"]
        for way, length in problem.data["moves"]:
            x += length * {"right": 1, "left": -1}.get(way, 0)
            y += length * {"up": 1, "down": -1}.get(way, 0)
            assert 0 <= x < SIDE and 0 <= y < SIDE
        assert problem.data["answer"] == f"{x},{y}"


def test_a_solution_takes_a_line_per_move():
    assert TASK.solution(ONE, random.Random(0)).reasoning_content == "6,4 up3=6,7\n6,7 left2=4,7"


def test_the_audit_wants_every_move_in_order():
    lines = TASK.solution(ONE, random.Random(0)).reasoning_content.split("\n")
    assert TASK.audit(ONE, "\n".join(lines))
    assert not TASK.audit(ONE, "\n".join(reversed(lines)))
    assert not TASK.audit(ONE, "\n".join(lines[1:]))
    # Thinking that is right in itself, about other numbers.
    assert not TASK.audit(OTHER, "\n".join(lines))


@pytest.mark.parametrize(
    "text",
    [
        "6,4 up3 left2=4,7",  # two moves in a line
        "6,4 up3=6,7",
        "6,4 up3=6,7\n6,7 left2=4,7\n4,7 up0=4,7",
        "6,4 up3=9,4\n9,4 left2=7,4",  # along the wrong axis
        "6,4 up3=6,7\n6,4 left2=4,4",  # copied wrong
        "6,4 up3=6,7\n6,7 right2=8,7",  # the wrong move
        "6,4 up٣=6,7\n6,7 left2=4,7",  # a digit, but not one that models write
    ],
)
def test_the_audit_stops_at_the_first_fault(text: str):
    assert not TASK.audit(ONE, text)
