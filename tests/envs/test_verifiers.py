"""Tasksets of verifiers: drawn, asked and scored by their own rewards; where that package is installed."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from leanseek.envs.environment import load_environment
from leanseek.errors import TaskError
from leanseek.messages import Message

TASKSET = """
import verifiers.v1 as vf

class Data(vf.TaskData):
    answer: str

class Double(vf.Task[Data]):
    @vf.reward(weight=0.5)
    async def right(self, task, trace) -> float:
        return float(trace.nodes[-1].message.content == task.answer)

    @vf.reward(weight=0.5)
    async def polite(self, task, trace) -> float:
        if "boom" in trace.nodes[-1].message.content:
            raise ValueError("no such luck")
        return float(trace.nodes[0].message.role == "system")

class Doubles(vf.Taskset[Double]):
    def load(self):
        for i in range(COUNT):
            yield Double(Data(prompt=f"double {i}", system_prompt="Be brief.", answer=str(2 * i)))

__all__ = ["Doubles"]
"""


def test_without_a_taskset_or_the_package_it_says_what_to_do():
    with pytest.raises(TaskError, match="verifiers:my_taskset"):
        load_environment("verifiers")


@pytest.fixture
def doubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip("verifiers", reason="the package verifiers is needed")
    (tmp_path / "my_doubles.py").write_text(TASKSET.replace("COUNT", "200"))
    monkeypatch.syspath_prepend(tmp_path)
    return "verifiers:my_doubles"


def test_a_taskset_is_played_by_its_own_rewards(doubles: str):
    task = load_environment(doubles)
    keys = {split: {p.key for p in islice(task.problems(split, 0), 300)} for split in ("train", "development", "test")}
    assert sum(map(len, keys.values())) == 200 and not keys["train"] & keys["test"]
    problem = next(task.problems("train", 0))
    episode = task.start(problem)
    assert [message.role for message in episode.messages] == ["system", "user"]
    gold = task.solution(problem, None)
    assert episode.step(gold).rewards == {"correct": 1.0, "format": 1.0, "reward": 1.0}
    wrong = Message("assistant", "no idea", "so")
    assert episode.step(wrong).rewards == {"correct": 0.0, "format": 1.0, "reward": 0.5}
    assert episode.step(Message("assistant", gold.content)).rewards["correct"] == 0.0


def test_a_reward_that_raises_raises_for_the_caller_to_count(doubles: str):
    task = load_environment(doubles)
    with pytest.raises(Exception, match="no such luck"):
        task.start(next(task.problems("train", 0))).step(Message("assistant", "boom", "so"))


def test_a_taskset_that_is_not_there_is_told():
    pytest.importorskip("verifiers", reason="the package verifiers is needed")
    with pytest.raises(TaskError, match="cannot be loaded: ModuleNotFoundError"):
        load_environment("verifiers:nobody_has_this")
