"""Rubric: each check by itself, and that only right replies earn by it."""

from __future__ import annotations

import pytest

from leanseek.engine.request import Output
from leanseek.envs.environment import load_environment
from leanseek.errors import ConfigError
from leanseek.evals.attempts import Attempt
from leanseek.messages import Message
from leanseek.rl.rubric import CHECKS, check_rubric, graded

TASK = load_environment("largest")
PROBLEM = next(TASK.problems("train", 0))
RIGHT = str(PROBLEM.data["answer"])


def attempt_of(thinking: str, answer: str = RIGHT, correct: bool = True, finish: str = "stop") -> Attempt:
    output = Output("r", 0, [1], "", finish_reason=finish)
    return Attempt(PROBLEM, [1], Message("assistant", answer, thinking), output, {}, correct, True)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        ("fresh", attempt_of("a\nb\n\n"), attempt_of("a\nb\na")),
        ("brief", attempt_of("x", f" {RIGHT}\n"), attempt_of("x", f"{RIGHT}\nbecause")),
        ("ended", attempt_of("x"), attempt_of("x", finish="length")),
        ("leads", attempt_of(f"a\nso {RIGHT}"), attempt_of(f"{RIGHT}\nso it is")),
        ("leads", attempt_of(f"so {RIGHT}"), attempt_of("")),
    ],
)
def test_each_check(check, good, bad):
    assert graded(good, {check: 0.3}) == 0.3 and graded(bad, {check: 0.3}) == 0


def test_soundness_is_the_tasks_own_audit():
    import random

    worked = TASK.solution(PROBLEM, random.Random(0)).reasoning_content or ""
    assert graded(attempt_of(worked), {"sound": 1.0}, TASK) == 1
    assert graded(attempt_of(worked + "\nnonsense"), {"sound": 1.0}, TASK) == 0
    assert graded(attempt_of(worked), {"sound": 1.0}) == 0, "nobody to ask"


def test_style_earns_nothing_where_the_answer_is_wrong():
    rubric = dict.fromkeys(CHECKS, 1.0)
    assert graded(attempt_of("so", correct=False), rubric, TASK) == 0


def test_a_check_that_does_not_exist_is_told():
    with pytest.raises(ConfigError, match="no check 'sond'; did you mean sound"):
        check_rubric({"sond": 1.0})
