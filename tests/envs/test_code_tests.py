from __future__ import annotations

import random
from itertools import islice

import pytest

from leanseek.envs.code_tests import CodeTests
from leanseek.envs.environment import Problem
from leanseek.envs.sandbox import Limits, usable
from leanseek.messages import Message
from tests.envs.test_sandbox import HOSTILE


@pytest.fixture(scope="module", autouse=True)
def needs_bubblewrap() -> None:
    if why := usable():
        pytest.skip(f"bubblewrap is needed: {why}")


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> CodeTests:
    monkeypatch.setattr("leanseek.envs.code_tests.LIMITS", Limits(seconds=1.5, cpu_seconds=1))
    return CodeTests()


def problem_of(task: CodeTests, level: int = 1) -> Problem:
    return next(task.problems("train", 0, [level]))


def test_an_answer_counts_with_a_fence_and_without_and_with_talk_around_it(task: CodeTests):
    problem = problem_of(task)
    code = problem.data["code"]
    for answer in (code, f"```python\n{code}\n```", f"Here it is:\n```py\n{code}\n```\nDone."):
        assert task.check(problem, answer)


def test_what_code_prints_or_how_it_ends_makes_nothing_right(task: CodeTests):
    problem = problem_of(task)
    code = problem.data["code"]
    results = problem.data["results"]
    assert task.check(problem, f"print({results!r})\n{code}\nprint('noise')")
    for wrong in (
        f"print({results!r})\ndef solve(*a):\n    return None",
        f"import os\n{code}\nos._exit(0)",
        f"{code}\nraise SystemExit(0)",
        "def solve(*a):\n    return object()",
        "def solve(*a):\n    a = []\n    a.append(a)\n    return a",
        code.replace("def solve", "def solve_it"),
    ):
        assert not task.check(problem, wrong)


def test_true_is_not_one(task: CodeTests):
    found = [p for p in islice(task.problems("train", 0, [1]), 300) if isinstance(p.data["results"][0], bool)]
    problem = found[0]
    as_numbers = problem.data["code"].replace("def solve", "def inner") + "\ndef solve(*a):\n    return int(inner(*a))"
    assert task.check(problem, problem.data["code"]) and not task.check(problem, as_numbers)


@pytest.mark.parametrize(
    "name", ["a fork bomb", "many files", "a connection", "no end", "output without end", "a file outside"]
)
def test_hostile_code_scores_nothing_and_the_next_episode_works(task: CodeTests, name: str):
    problem = problem_of(task)
    answer = f"{problem.data['code']}\n{HOSTILE[name]}"
    turn = task.start(problem).step(Message("assistant", answer, "so"))
    assert turn.rewards == {"correct": 0.0, "format": 1.0}
    assert task.start(problem).step(task.solution(problem, random.Random(0))).rewards["correct"] == 1.0


def test_algorithms_are_all_drawn(task: CodeTests):
    asked = {p.data["code"].split("(")[1].split(")")[0] for p in islice(task.problems("train", 0, [3]), 100)}
    assert asked == {"n", "spans", "text", "xs", "grid"}
