"""reasoning_gym: every task of the reasoning-gym package by its name, as in reasoning_gym:chain_sum."""

from __future__ import annotations

import base64
import importlib
import inspect
import json
import pickle
import random
import re
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from leanseek.envs import sandbox
from leanseek.envs.environment import Environment, Problem
from leanseek.errors import TaskError, nearest
from leanseek.messages import Message

# What the mixture leaves out: `composite` is itself one and must be told of what, and `codeio` makes its problems by
# running programs in this process, some of which write files where they stand.
LEFT_OUT = ("composite", "codeio")
# Seeds of problems.
MOST_SEEDS = 1 << 31
# Scorers that evaluate an answer as Python, or hand it to a library that does: those run in the sandbox.
_EVALUATES = re.compile(r"\beval\(answer|parse_expr\(|\bexec\(")
# The package brings numpy and sympy with it, which take their time to load.
LIMITS = sandbox.Limits(seconds=30.0, cpu_seconds=20, memory_bytes=4 << 30)
_SCORER = """
import base64, json, pickle, sys
sys.path[:0] = given["packages"]
import reasoning_gym
dataset = reasoning_gym.create_dataset(given["name"], seed=given["seed"], size=1)
entry = pickle.loads(base64.b64decode(given["entry"]))  # made by us, outside
print(json.dumps({"score": float(dataset.score_answer(given["answer"], entry))}))
"""


@dataclass(frozen=True, eq=False)
class _Entry:
    """A problem as the package has it; equal where what is asked is."""

    values: Mapping[str, Any] = field(repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Entry) and self.values["question"] == other.values["question"]

    __hash__ = None  # type: ignore[assignment]


class ReasoningGym(Environment):
    """One task of reasoning-gym, with its default settings and its own scorer; without a name, all in turn by chance.

    An answer is right where the scorer gives it the full score. Scorers that evaluate the answer as code run in the
    sandbox. A few tasks state no answer (`boxnet`, `rush_hour`): they can be learnt by reinforcement, and have no
    worked solution.

    Args:
        task: its name.
    Raises:
        TaskError: the package is not installed, or has no such task.
    """

    name = "reasoning_gym"
    description = "any task of the reasoning-gym package, as reasoning_gym:chain_sum"
    levels = (1,)
    option = "the name of a task of reasoning-gym"
    extra = "reasoning-gym"
    longest_answer = 8000
    exact = False  # many scorers are lenient

    def __init__(self, task: str | None = None) -> None:
        have = tasks()
        if task is not None and task not in have:
            raise TaskError(f"reasoning-gym has no task {task!r}{nearest(task, have)}; have {', '.join(have)}")
        self._task = task
        if task is not None:
            self.name = f"reasoning_gym:{task}"
            self.description = f"{task.replace('_', ' ')}, of reasoning-gym"

    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw a problem by a seed of its own."""
        task = self._task or rng.choice([name for name in tasks() if name not in LEFT_OUT])
        seed = rng.randrange(MOST_SEEDS)
        entry = _dataset(task, seed)[0]
        question = str(entry["question"])
        data = {"task": task, "seed": seed, "answer": _gold(entry), "entry": _Entry(entry)}
        return Problem(self.name, level, question, data, f"{task}: {question}")

    def solution(self, problem: Problem, rng: random.Random) -> Message:
        """Return the answer; there is no thinking to show.

        Raises:
            TaskError: a task that states none.
        """
        gold = problem.data["answer"]
        if gold is None:
            raise TaskError(f"{problem.data['task']} of reasoning-gym states no answer: it has no worked solutions")
        return Message("assistant", gold, "")

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether the scorer gives the answer the full score."""
        data = problem.data
        if answer == data["answer"]:
            return True
        if evaluates(data["task"]):
            return self._scored_apart(data, answer)
        try:
            return float(_dataset(data["task"], data["seed"]).score_answer(answer, data["entry"].values)) >= 1.0
        except Exception:  # a scorer of another package that stumbles over an answer: it is not a right one
            return False

    def wrong_answer(self, problem: Problem) -> str:
        """Return what no task asks for."""
        return "no idea"

    @staticmethod
    def _scored_apart(data: Mapping[str, Any], answer: str) -> bool:
        packages = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
        # The entry itself goes along: some tasks make another one of the same seed in another process.
        entry = base64.b64encode(pickle.dumps(data["entry"].values)).decode()
        given = {"name": data["task"], "seed": data["seed"], "answer": answer, "packages": packages, "entry": entry}
        result = sandbox.run(_SCORER, given, LIMITS, folders=packages)
        try:
            # The last line: what the answer printed on its way is before it.
            return result.status == "ended" and json.loads(result.output.strip().split("\n")[-1])["score"] >= 1.0
        except (ValueError, KeyError, TypeError):
            return False


def tasks() -> list[str]:
    """Return the names of reasoning-gym's tasks.

    Raises:
        TaskError: the package is not installed.
    """
    return sorted(_package().factory.DATASETS)


def evaluates(task: str) -> bool:
    """Whether a task's scorer evaluates an answer as code."""
    kind = _package().factory.DATASETS[task][0]
    return _EVALUATES.search(inspect.getsource(inspect.getmodule(kind) or kind)) is not None


@lru_cache(maxsize=1)
def _package() -> Any:
    try:
        importlib.import_module("reasoning_gym.factory")
        return importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise TaskError(
            f"reasoning_gym needs the reasoning-gym package ({error}): pip install 'leanseek[reasoning-gym]'"
        ) from None


def _dataset(task: str, seed: int) -> Any:
    """Return a data set of one problem. Those that make it only when asked are kept, and get another seed."""
    if not _lazy(task):
        return _package().create_dataset(task, seed=seed, size=1)
    kept = _kept(task)
    kept.seed = seed
    return kept


@lru_cache(maxsize=256)
def _kept(task: str) -> Any:
    return _package().create_dataset(task, seed=0, size=1)


@lru_cache(maxsize=256)
def _lazy(task: str) -> bool:
    """Whether a data set whose seed is changed gives what one made with that seed gives."""
    kept = _kept(task)
    for seed in (11, 12):
        kept.seed = seed
        fresh = _package().create_dataset(task, seed=seed, size=1)
        if kept[0]["question"] != fresh[0]["question"]:
            return False
    return True


def _gold(entry: Mapping[str, Any]) -> str | None:
    """Return an entry's answer, or one that its metadata gives as an example."""
    if entry["answer"] is not None:
        return str(entry["answer"])
    metadata = entry["metadata"]
    if "possible_answer" in metadata:
        return json.dumps(metadata["possible_answer"])
    found = metadata.get("example_answer", metadata.get("example_correct_answer"))
    return None if found is None else str(found)
