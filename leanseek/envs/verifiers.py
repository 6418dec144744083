"""verifiers: tasks written for the verifiers package, by their taskset's name, as in verifiers:my_taskset."""

from __future__ import annotations

import asyncio
import importlib
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any

from leanseek.envs.environment import Environment, Episode, Problem, Split, Turn
from leanseek.envs.rows import in_turn
from leanseek.errors import TaskError
from leanseek.messages import Message

MOST_TASKS = 20_000  # that are taken of a taskset without end


class Verifiers(Environment):
    """A taskset of verifiers (its `v1` interface), each task answered with one reply.

    The taskset's own rewards score: `correct` is 1 where they add up to 1 or more, `reward` is their sum within [0, 1].
    Tasks that need a container or servers of tools are refused: they bring a world of their own.

    Args:
        taskset: the name of an installed package or module that exports a Taskset.
    Raises:
        TaskError: the package or the taskset is not there, or is of a kind that is not played here.
    """

    name = "verifiers"
    description = "tasks written for the verifiers package, as verifiers:my_taskset"
    levels = (1,)
    option = "the name of a taskset"
    extra = "verifiers"
    longest_answer = 20_000
    exact = False
    waits = True

    def __init__(self, taskset: str | None = None) -> None:
        if not taskset:
            raise TaskError("verifiers plays a taskset: name it after a colon, as in verifiers:my_taskset")
        self._package = _package()
        self.name, self.description = f"verifiers:{taskset}", f"the taskset {taskset} of verifiers"
        try:
            config = self._package.taskset_config_type(taskset)(id=taskset)
            loaded = self._package.load_taskset(config)
            tasks = list(itertools.islice(iter(loaded), MOST_TASKS))
        except Exception as error:  # whatever a package of somebody else's meets
            raise TaskError(f"the taskset {taskset!r} cannot be loaded: {type(error).__name__}: {error}") from None
        if not tasks:
            raise TaskError(f"the taskset {taskset!r} has no tasks")
        if tasks[0].NEEDS_CONTAINER or tasks[0].toolsets(tasks[0].config):
            raise TaskError(f"the taskset {taskset!r} needs a container or servers of tools, which are not played here")
        found: dict[str, Problem] = {}
        for task in tasks:
            data = {"task": task, "answer": getattr(task.data, "answer", None)}
            found.setdefault(task.key, Problem(self.name, 1, task.data.prompt_text, data, task.key))
        self._rows = list(found.values())

    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw any task."""
        return rng.choice(self._rows)

    def problems(self, split: Split, seed: int, levels: Sequence[int] | None = None) -> Iterator[Problem]:
        """Yield the tasks of a split again and again.

        Raises:
            TaskError: there is none, or a level other than 1 is asked for.
        """
        if levels and tuple(levels) != self.levels:
            yield from super().problems(split, seed, levels)
        yield from in_turn(self.name, self._rows, split, seed, self.levels)

    def solution(self, problem: Problem, rng: random.Random) -> Message:
        """Return the task's `answer`.

        Raises:
            TaskError: it has none.
        """
        gold = problem.data["answer"]
        if gold is None:
            raise TaskError(f"the tasks of {self.name} have no `answer`, so there are no worked solutions")
        return Message("assistant", str(gold), "")

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether the taskset's rewards add up to 1."""
        return self.reward(problem, Message("assistant", answer, "")) >= 1.0

    def wrong_answer(self, problem: Problem) -> str:
        """Return what no task asks for."""
        return "no idea"

    def start(self, problem: Problem) -> Episode:
        """Begin an attempt."""
        return _Scored(self, problem)

    def reward(self, problem: Problem, reply: Message) -> float:
        """Return the sum of the taskset's rewards for a reply, whatever it is."""
        package, task = self._package, problem.data["task"]
        answered = package.AssistantMessage(content=reply.content, reasoning_content=reply.reasoning_content)
        said = [*_asked(package, task.data), answered]
        nodes = [
            package.MessageNode(parent=i - 1 if i else None, message=message, sampled=i == len(said) - 1)
            for i, message in enumerate(said)
        ]
        seen = package.TraceTask(type=type(task).__name__, data=task.data, key=task.key)
        trace = package.Trace(task=seen, agent=package.AgentInfo(config=package.AgentConfig()), nodes=nodes)
        asyncio.run(task.score(trace))
        return float(trace.reward)


class _Scored(Episode):
    """One reply, scored by the taskset."""

    def __init__(self, environment: Verifiers, problem: Problem) -> None:
        super().__init__(environment, problem)
        self._rewarding = environment
        asked = _asked(environment._package, problem.data["task"].data)
        self.messages = tuple(Message(one.role, _text(one.content)) for one in asked)

    def step(self, reply: Message) -> Turn:
        """Score a reply."""
        formed = 0 < len(reply.content.strip()) <= self.environment.longest_answer and not reply.tool_calls
        reward = min(max(self._rewarding.reward(self.problem, reply), 0.0), 1.0) if formed else 0.0
        formed = formed and reply.reasoning_content is not None
        return Turn((), True, {"correct": float(formed and reward >= 1.0), "format": float(formed), "reward": reward})


def _asked(package: Any, data: Any) -> list[Any]:
    """Return what is said before the first reply, as the package has it."""
    system = [package.SystemMessage(content=data.system_prompt)] if data.system_prompt else []
    prompt = data.prompt
    return [*system, *([package.UserMessage(content=prompt)] if isinstance(prompt, str) else prompt or [])]


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(getattr(part, "text", "") for part in content or ())


def _package() -> Any:
    try:
        return importlib.import_module("verifiers.v1")
    except ImportError as error:
        raise TaskError(
            f"verifiers needs the package of its name ({error}): pip install 'leanseek[verifiers]'"
        ) from None
