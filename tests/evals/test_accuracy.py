from __future__ import annotations

import json
import random

import pytest

from leanseek.engine.request import Output
from leanseek.envs.environment import Problem
from leanseek.envs.running_total import RunningTotal
from leanseek.evals.accuracy import distinct_problems, evaluate, tries
from leanseek.evals.proportion import Proportion, pass_at_k
from leanseek.messages import Message
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.tokenizer import Tokenizer

TASK = RunningTotal()


class Student:
    """An engine that solves level 2 soundly, level 3 by luck, and of sampled replies every second one."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.chat = ChatFormat(tokenizer)
        self.problem_of: dict[tuple[int, ...], Problem] = {}
        for split, levels in (("test", None), ("development", [2])):
            for problem in distinct_problems(TASK, 60, 0, levels, split):
                self.problem_of[tuple(self.chat.prompt([Message("user", problem.prompt)]))] = problem

    def generate(self, prompts, params, *, on_progress=None):
        outputs = []
        for prompt, one in zip(prompts, params, strict=True):
            problem = self.problem_of[tuple(prompt)]
            for index in range(one.n):
                right = problem.level <= 3 if one.temperature == 0 else index % 2 == 0
                thinking = TASK.solution(problem, random.Random(0)).reasoning_content if problem.level == 2 else "so"
                text = str(problem.data["answer"]) if right else "no"
                ids = self.chat.reply(Message("assistant", text, thinking))
                outputs.append(Output("", index, ids, ""))
                if on_progress is not None:
                    on_progress(len(outputs))
        return outputs


@pytest.fixture
def student(tiny_tokenizer: Tokenizer) -> Student:
    return Student(tiny_tokenizer)


def test_accuracy_counts_greedy_sampled_and_sound_replies(student: Student):
    done: list[int] = []
    levels = TASK.levels
    count = 10 * len(levels)
    found = evaluate(student, TASK, problems=count, samples=4, on_progress=done.append)
    assert found.greedy == Proportion.of(20, count) and found.formed == Proportion.of(count, count)
    shares = {level: (one.share, one.count) for level, one in found.levels.items()}
    assert shares == {level: (float(level <= 3), 10) for level in levels}
    assert found.sound == Proportion.of(10, 20)
    assert {k: one.share for k, one in found.pass_at_k.items()} == pytest.approx(
        {k: pass_at_k(4, 2, k) for k in (1, 2, 4)}
    )
    assert done == list(range(1, 5 * count + 1))
    assert len(found.attempts) == count and tuple(one.problem.level for one in found.attempts[: len(levels)]) == levels
    figures = json.loads(json.dumps(found.to_dict()))
    assert figures["greedy"] == pytest.approx(20 / count) and figures["n"] == count and figures["pass_at_k"]["4"] == 1.0


def test_greedy_alone(student: Student):
    found = evaluate(student, TASK, problems=10, samples=0, levels=[2], split="development")
    assert found.greedy.share == 1.0 and found.pass_at_k == {}
    assert {one.problem.split for one in found.attempts} == {"development"}


def test_the_problems_are_distinct_held_out_and_the_same_every_time():
    found = distinct_problems(TASK, 200, 0)
    assert len({one.key for one in found}) == 200 and {one.split for one in found} == {"test"}
    assert found == distinct_problems(TASK, 200, 0) != distinct_problems(TASK, 200, 1)


def test_a_task_with_few_problems_gives_what_it_has():
    class Small(RunningTotal):
        def draw(self, level: int, rng: random.Random) -> Problem:
            return super().draw(level, random.Random(rng.randrange(40)))

    few = distinct_problems(Small(), 100, 0, [2])
    assert 1 <= len(few) < 20 and len({one.key for one in few}) == len(few)


@pytest.mark.parametrize(("samples", "wanted"), [(0, []), (1, [1]), (4, [1, 2, 4]), (6, [1, 2, 4, 6])])
def test_the_k_that_are_shown(samples: int, wanted: list[int]):
    assert tries(samples) == wanted
