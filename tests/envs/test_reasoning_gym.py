"""Tasks of reasoning-gym: their own answers score, lenient and hostile ones are judged without harm."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import pytest

pytest.importorskip("reasoning_gym", reason="the package reasoning-gym is needed")

from leanseek.envs.environment import load_environment
from leanseek.envs.reasoning_gym import LEFT_OUT, evaluates, tasks
from leanseek.envs.sandbox import usable
from leanseek.envs.validate import validate
from leanseek.errors import TaskError

# Tasks that state no answer and no example of one.
WITHOUT_GOLD = {"boxnet", "rush_hour"}


@pytest.mark.parametrize("name", ["chain_sum", "leg_counting", "spell_backward"])
def test_a_task_keeps_what_tasks_promise(name: str):
    assert validate(load_environment(f"reasoning_gym:{name}"), 40) == []


def test_the_mixture_draws_many_tasks_and_names_itself():
    task = load_environment("reasoning_gym")
    drawn = list(islice(task.problems("train", 0), 12))
    assert len({problem.data["task"] for problem in drawn}) > 6 and {p.environment for p in drawn} == {"reasoning_gym"}


def test_a_task_that_is_not_there_is_told():
    with pytest.raises(TaskError, match="did you mean chain_sum"):
        load_environment("reasoning_gym:chain_sums")


@pytest.mark.slow
@pytest.mark.parametrize("name", [] if not tasks else [name for name in tasks() if name not in LEFT_OUT])
def test_every_tasks_own_answer_scores_with_its_own_scorer(name: str):
    task = load_environment(f"reasoning_gym:{name}")
    for problem in islice(task.problems("train", 0), 2):
        if name in WITHOUT_GOLD:
            with pytest.raises(TaskError, match="states no answer"):
                task.solution(problem, random.Random(0))
            continue
        gold = task.solution(problem, random.Random(0))
        assert task.start(problem).step(gold).rewards == {"correct": 1.0, "format": 1.0}
        if evaluates(name):
            assert usable() or task._scored_apart(problem.data, gold.content)


def test_answers_that_scorers_evaluate_are_evaluated_in_the_sandbox(tmp_path: Path):
    if why := usable():
        pytest.skip(f"bubblewrap is needed: {why}")
    assert evaluates("countdown") and evaluates("simple_integration") and not evaluates("chain_sum")
    task = load_environment("reasoning_gym:countdown")
    problem = next(task.problems("train", 0))
    gold = problem.data["answer"]
    assert task.check(problem, f"({gold})")  # another text, so the scorer is asked
    file = tmp_path / "loose"
    for hostile in (f"open({str(file)!r}, 'w')", f"__import__('pathlib').Path({str(file)!r}).touch()"):
        assert not task.check(problem, hostile)
    assert not file.exists()
