"""Environment: a task with unlimited seeded problems, an exact checker and worked solutions. One page.

To add one, write `envs/<name>.py` with one Environment subclass. A problem belongs to its split
by the hash of its key, so splits share no problem, in any stage and with any seed.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import pkgutil
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar, Literal

import leanseek.envs
from leanseek.errors import TaskError, nearest
from leanseek.messages import Message

Split = Literal["train", "development", "test"]
# Of ten problems one is held out for the final measurement, and one to watch progress and choose by.
PARTS: tuple[Split, ...] = ("test", "development", *("train",) * 8)
# Longest answer that a checker looks at; anything longer is wrong.
ANSWER_CHARACTERS = 200
# Names for a problem's parts.
LABELS = "abcdefghij"


@dataclass(frozen=True)
class Problem:
    """One problem.

    Args:
        environment: its task's name.
        level: difficulty.
        prompt: what the user asks.
        data: what the checker needs.
        key: the same for problems that are the same, whatever their wording or order.
    """

    environment: str
    level: int
    prompt: str
    data: Mapping[str, Any] = field(compare=False)
    key: str

    @property
    def split(self) -> Split:
        """The split that this problem belongs to, for good."""
        digest = hashlib.sha256(f"{self.environment}:{self.key}".encode()).digest()
        return PARTS[int.from_bytes(digest[:8], "big") % len(PARTS)]


@dataclass(frozen=True)
class Turn:
    """What an episode answers to a reply: further messages, whether it is over, and rewards in [0, 1]."""

    messages: tuple[Message, ...]
    done: bool
    rewards: Mapping[str, float]


class Episode:
    """One attempt at a problem; these tasks end with the first reply."""

    def __init__(self, environment: Environment, problem: Problem) -> None:
        self.environment, self.problem = environment, problem
        self.messages = (Message("user", problem.prompt),)

    def step(self, reply: Message) -> Turn:
        """Score a reply: `correct` for the answer, `format` for thinking that ends and an answer that is there."""
        formed = reply.reasoning_content is not None and 0 < len(reply.content.strip()) <= ANSWER_CHARACTERS
        correct = formed and self.environment.check(self.problem, reply.content.strip())
        return Turn((), True, {"correct": float(correct), "format": float(formed)})


class Environment(ABC):
    """A task. Attributes: `name`, `description` (one sentence), `levels` (of difficulty, easiest first)."""

    name: ClassVar[str]
    description: ClassVar[str]
    levels: ClassVar[tuple[int, ...]]

    @abstractmethod
    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw any problem of a level, of either split."""

    @abstractmethod
    def solution(self, problem: Problem, rng: random.Random) -> Message:
        """Return a worked solution: one step a line, then the answer."""

    @abstractmethod
    def check(self, problem: Problem, answer: str) -> bool:
        """Whether an answer is right. Must stand any text of up to ANSWER_CHARACTERS."""

    @abstractmethod
    def audit(self, problem: Problem, reasoning: str) -> bool:
        """Whether every line of the thinking is right and it leads to the right answer."""

    def wrong_answer(self, problem: Problem) -> str:
        """Return an answer that is well formed and wrong."""
        return str(int(problem.data["answer"]) + 1)

    def practice(self, rng: random.Random) -> str:
        """Return a true line of the kind that this task's thinking is made of, to be practised by itself."""
        level = rng.choice(self.levels)
        problem = next(self.problems("train", rng.getrandbits(48), [level]))
        return rng.choice((self.solution(problem, rng).reasoning_content or "").split("\n"))

    def problems(self, split: Split, seed: int, levels: Sequence[int] | None = None) -> Iterator[Problem]:
        """Yield problems of a split without end, levels in turn; the same seed gives the same problems.

        Raises:
            TaskError: a level that the task does not have.
        """
        chosen = tuple(levels or self.levels)
        for level in chosen:
            if level not in self.levels:
                raise TaskError(f"{self.name} has no level {level}; it has {', '.join(map(str, self.levels))}")
        rng = random.Random(f"{self.name}/{split}/{seed}")
        while True:
            for level in chosen:
                problem = self.draw(level, rng)
                while problem.split != split:
                    problem = self.draw(level, rng)
                yield problem

    def start(self, problem: Problem) -> Episode:
        """Begin an attempt."""
        return Episode(self, problem)


def environments() -> list[str]:
    """Return the names of the environments that come with leanseek."""
    names = [module.name for module in pkgutil.iter_modules(leanseek.envs.__path__)]
    return sorted(name for name in names if name not in ("environment", "validate"))


def load_environment(name: str) -> Environment:
    """Return an environment by its name, or by the dotted name of a module that has one.

    Raises:
        TaskError: no such name or module, or a module without exactly one environment.
    """
    dotted = "." in name
    if not dotted and name not in environments():
        have = environments()
        raise TaskError(f"environment {name!r} is not known{nearest(name, have)}; have {', '.join(have)}")
    try:
        module: ModuleType = importlib.import_module(name if dotted else f"leanseek.envs.{name}")
    except ImportError as error:
        hint = "; python -m leanseek also looks in the current folder" if dotted else ""
        raise TaskError(f"environment {name!r} cannot be imported: {error}{hint}") from None
    found = [
        member
        for member in vars(module).values()
        if inspect.isclass(member) and issubclass(member, Environment) and member.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TaskError(f"{module.__name__} has {len(found)} environments; a module has exactly one")
    environment: Environment = found[0]()
    return environment
