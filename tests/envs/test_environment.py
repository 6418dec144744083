from __future__ import annotations

import itertools
import random
import re

import pytest

from leanseek.envs.environment import (
    ANSWER_CHARACTERS,
    Environment,
    Problem,
    environments,
    load_environment,
)
from leanseek.envs.running_total import RunningTotal
from leanseek.errors import TaskError
from leanseek.messages import Message


@pytest.fixture
def task() -> Environment:
    return RunningTotal()


def first(task: Environment, count: int, split: str = "train", seed: int = 0, levels=None) -> list[Problem]:
    return list(itertools.islice(task.problems(split, seed, levels), count))


def test_a_problem_belongs_to_one_split_for_good():
    splits = [Problem("t", 1, "whatever", {}, str(key)).split for key in range(2000)]
    assert 150 < splits.count("test") < 250 and 150 < splits.count("development") < 250
    assert splits == [Problem("t", 2, "otherwise", {}, str(key)).split for key in range(2000)]


def test_splits_share_no_problem(task: Environment):
    keys = {split: {p.key for p in first(task, 300, split)} for split in ("train", "development", "test")}
    for one, other in itertools.combinations(keys.values(), 2):
        assert not one & other


def test_levels_come_in_turn_and_seeds_differ(task: Environment):
    assert [p.level for p in first(task, 6, levels=[2, 4])] == [2, 4, 2, 4, 2, 4]
    assert first(task, 20, seed=1) != first(task, 20, seed=2)
    assert first(task, 20, seed=1) == first(task, 20, seed=1)


def test_a_level_that_is_not_there_is_refused(task: Environment):
    with pytest.raises(
        TaskError, match=f"running_total has no level 9; it has {', '.join(map(str, RunningTotal.levels))}"
    ):
        first(task, 1, levels=[9])


@pytest.mark.parametrize(
    ("content", "reasoning", "correct", "formed"),
    [
        ("{gold}", "so", 1, 1),
        (" {gold}\n", "so", 1, 1),
        ("{gold}", "", 1, 1),
        ("{gold}", None, 0, 0),
        ("", "so", 0, 0),
        ("{gold}0", "so", 0, 1),
        ("{gold}" + " " * ANSWER_CHARACTERS, "so", 1, 1),
        ("{gold}" + "x" * ANSWER_CHARACTERS, "so", 0, 0),
    ],
)
def test_an_episode_scores_answer_and_form(task: Environment, content: str, reasoning, correct: int, formed: int):
    problem = first(task, 1)[0]
    episode = task.start(problem)
    assert [m.content for m in episode.messages] == [problem.prompt]
    turn = episode.step(Message("assistant", content.format(gold=problem.data["answer"]), reasoning))
    assert turn.done and turn.rewards == {"correct": correct, "format": formed}


def test_environments_are_found_by_file_and_by_dotted_name():
    assert {"countdown", "grid_walk", "largest", "running_total"} <= set(environments())
    assert "validate" not in environments() and "environment" not in environments()
    for name in environments(adapters=False):
        assert load_environment(name).name == name
    assert load_environment("leanseek.envs.largest").name == "largest"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cuontdown", "did you mean countdown"),
        ("no.such.module", "cannot be imported: .*; python -m leanseek also looks in the current folder"),
        ("leanseek.envs.validate", "has 0 environments"),
    ],
)
def test_an_unknown_environment_is_a_sentence(name: str, said: str):
    with pytest.raises(TaskError, match=said):
        load_environment(name)


def test_practice_is_lines_of_worked_training_problems(task: Environment):
    lines = [task.practice(random.Random(seed)) for seed in range(50)]
    assert lines == [task.practice(random.Random(seed)) for seed in range(50)] and len(set(lines)) > 40
    worked = task.solution(first(task, 1)[0], random.Random(0)).reasoning_content.split("\n")
    shape = [re.sub(r"\d+", "0", line.replace("-", "+")) for line in worked]
    assert {re.sub(r"\d+", "0", line.replace("-", "+"))[1:] for line in lines} == {line[1:] for line in shape}
