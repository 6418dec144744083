from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

import pytest

from leanseek.envs.environment import Environment, Problem, environments, load_environment
from leanseek.envs.running_total import RunningTotal
from leanseek.envs.sandbox import usable
from leanseek.envs.validate import validate
from leanseek.messages import Message

# Tasks whose checks take a sandbox each: fewer problems.
FEWER = {"code_tests": 6, "tool_use": 20}

# The worlds are tried out in tests/envs/worlds, with fewer problems: they simulate.
WORLDS = ("battery_swap", "delivery_drone", "smart_home")


@pytest.mark.parametrize("name", [name for name in environments(adapters=False) if name not in WORLDS])
def test_every_environment_keeps_what_tasks_promise(name: str):
    if name in FEWER and (why := usable()):
        pytest.skip(f"bubblewrap is needed: {why}")
    assert validate(load_environment(name), FEWER.get(name, 200)) == []


@pytest.mark.parametrize("name", [name for name in environments(adapters=False) if name not in WORLDS])
def test_there_are_thousands_of_problems_and_each_level_has_its_own(name: str):
    task = load_environment(name)
    for level in task.levels:
        assert len({problem.key for problem in islice(task.problems("train", 3, [level]), 100)}) > 50
    assert len({problem.key for problem in islice(task.problems("train", 3), 2400)}) > 1000


class Sound(RunningTotal):
    """A task that is right; the others each break one promise."""


class Generous(Sound):
    def check(self, problem: Problem, answer: str) -> bool:
        return answer.startswith(str(problem.data["answer"]))


class Fragile(Sound):
    def check(self, problem: Problem, answer: str) -> bool:
        return int(answer) == problem.data["answer"]


class Credulous(Sound):
    def audit(self, problem: Problem, reasoning: str) -> bool:
        return True


class Suspicious(Sound):
    def audit(self, problem: Problem, reasoning: str) -> bool:
        return False


class Mistaken(Sound):
    def solution(self, problem: Problem, rng: random.Random) -> Message:
        solution = super().solution(problem, rng)
        return Message("assistant", solution.content + "1", solution.reasoning_content)


class Tame(Sound):
    def wrong_answer(self, problem: Problem) -> str:
        return str(problem.data["answer"])


class Small(Sound):
    levels = (1,)

    def draw(self, level: int, rng: random.Random) -> Problem:
        problem = super().draw(2, random.Random(rng.randrange(40)))
        return Problem(self.name, level, problem.prompt, problem.data, problem.key)


class Restless(Sound):
    def problems(self, split, seed, levels=None) -> Iterator[Problem]:
        return super().problems(split, random.SystemRandom().randrange(1 << 60), levels)


class Deaf(Sound):
    def problems(self, split, seed, levels=None) -> Iterator[Problem]:
        return super().problems(split, 0, levels)


class Leaky(Sound):
    def draw(self, level: int, rng: random.Random) -> Problem:
        problem = super().draw(level, rng)
        start = problem.data["start"]
        prompt = f"start {start}"
        return Problem(self.name, level, prompt, problem.data, problem.key)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (Generous(), "scores"),
        (Fragile(), "makes the checker or the audit fail: ValueError"),
        (Credulous(), "a broken form of"),
        (Suspicious(), "the audit refuses"),
        (Mistaken(), "does not score 1"),
        (Tame(), "wrong_answer()"),
        (Small(), "distinct"),
        (Restless(), "other problems the second time"),
        (Deaf(), "seeds 0 and 1 give the same problems"),
        (Leaky(), "prompts"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Environment) else "",
)
def test_a_broken_promise_is_named(task: Environment, said: str):
    assert any(said in failure for failure in validate(task, 60))


def test_the_sound_task_that_they_all_break_is_sound():
    assert validate(Sound(), 60) == []
