"""Environment: a task with unlimited seeded problems, an exact checker and worked solutions. One page.

To add one, write `envs/<name>.py` with one Environment subclass. A problem belongs to its split
by the hash of its key, so splits share no problem, in any stage and with any seed. A task of one reply says how an
answer is checked; one of several replies, with tools or without, has an Episode of its own.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import pkgutil
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, ClassVar, Literal

import leanseek.envs
from leanseek.errors import TaskError, nearest
from leanseek.messages import Message, ToolSpec

Split = Literal["train", "development", "test"]
# Of ten problems one is held out for the final measurement, and one to watch progress and choose by.
PARTS: tuple[Split, ...] = ("test", "development", *("train",) * 8)
# Longest answer that a checker looks at, where the task does not say; anything longer is wrong.
ANSWER_CHARACTERS = 200
# Most replies of a demonstration: an expert that is not done by then never will be.
MOST_TURNS = 200
# Tasks that are those of other packages, which must be installed.
ADAPTERS = ("reasoning_gym", "verifiers")
# Files of this folder that are not tasks.
NOT_TASKS = ("environment", "expressions", "rows", "sandbox", "validate")
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
    """What an episode answers to a reply.

    Args:
        messages: what is said next: results of the tools that the reply called, or a user's answer; () at the end.
        done: whether the episode is over.
        rewards: each in [0, 1]; those of the last turn are the episode's. `correct` is 1 where the problem is solved,
            `format` where every reply was well formed.
    """

    messages: tuple[Message, ...]
    done: bool
    rewards: Mapping[str, float]


class Episode:
    """One attempt at a problem; as it stands here, it ends with the first reply. Others override `step` and `expert`.

    Attributes: `messages` (what is said before the first reply), `tools` (what replies may call).
    """

    def __init__(self, environment: Environment, problem: Problem) -> None:
        self.environment, self.problem = environment, problem
        self.messages: tuple[Message, ...] = (Message("user", problem.prompt),)
        self.tools: tuple[ToolSpec, ...] = environment.tools

    def step(self, reply: Message) -> Turn:
        """Take a reply, any at all: `correct` for the answer, `format` for thinking that ends and an answer after it.

        What a model says must not raise; where it does, the reply scores 0 and the error is counted.
        """
        fits = 0 < len(reply.content.strip()) <= self.environment.longest_answer
        formed = reply.reasoning_content is not None and fits and not reply.tool_calls
        correct = formed and self.environment.check(self.problem, reply.content.strip())
        return Turn((), True, {"correct": float(correct), "format": float(formed)})

    def expert(self, rng: random.Random) -> Message:
        """Return what an expert would say now, where the episode stands; said at each turn, it solves the problem."""
        return self.environment.solution(self.problem, rng)


class Environment(ABC):
    """A task.

    Attributes:
        name: what it is called; that of its file.
        description: one sentence.
        levels: of difficulty, easiest first.
        tools: what replies may call.
        multi_turn: whether an episode can go on after a reply; there is then an Episode of its own.
        longest_answer: characters of an answer that is looked at.
        exact: whether a right answer with anything added to it is wrong.
        waits: whether a reply's turn waits for something else, such as a sandbox: several then wait at once.
        option: what may follow the name after a colon, in words; the class then takes it as its argument, None where
            there is none.
        extra: what of leanseek must be installed for it, as in `pip install leanseek[extra]`; "": nothing.
    """

    name: str
    description: str
    levels: tuple[int, ...]
    tools: tuple[ToolSpec, ...] = ()
    multi_turn: ClassVar[bool] = False
    longest_answer: ClassVar[int] = ANSWER_CHARACTERS
    exact: ClassVar[bool] = True
    waits: ClassVar[bool] = False
    option: ClassVar[str] = ""
    extra: ClassVar[str] = ""

    @abstractmethod
    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw any problem of a level, of any split."""

    @abstractmethod
    def solution(self, problem: Problem, rng: random.Random) -> Message:
        """Return a worked solution: one step a line, then the answer; of several replies, the first."""

    @abstractmethod
    def check(self, problem: Problem, answer: str) -> bool:
        """Whether an answer is right. Must stand any text of up to `longest_answer` characters."""

    def audit(self, problem: Problem, reasoning: str) -> bool | None:
        """Whether every line of the thinking is right and it leads to the right answer; None: it cannot be told."""
        return None

    def wrong_answer(self, problem: Problem) -> str:
        """Return an answer that is well formed and wrong."""
        return str(int(problem.data["answer"]) + 1)

    def worked(self, problem: Problem, rng: random.Random) -> str:
        """Return a worked solution as plain text, for a corpus: the thinking, then the answer."""
        solution = self.solution(problem, rng)
        return f"{solution.reasoning_content}\n{solution.content}"

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
                yield self.draw_of(split, level, rng)

    def draw_of(self, split: Split, level: int, rng: random.Random) -> Problem:
        """Draw a problem of a split."""
        while (problem := self.draw(level, rng)).split != split:
            pass
        return problem

    def start(self, problem: Problem) -> Episode:
        """Begin an attempt."""
        return Episode(self, problem)


def play(episode: Episode, speak: Callable[[], Message], most: int = MOST_TURNS) -> tuple[list[Message], Turn]:
    """Let somebody speak in an episode to its end; return all that was said, replies and results, and the last turn.

    Args:
        episode: just begun.
        speak: gives the next reply.
        most: replies after which it is broken off.
    """
    said = list(episode.messages)
    for _ in range(most):
        said.append(speak())
        turn = episode.step(said[-1])
        said += turn.messages
        if turn.done:
            break
    return said, turn


def demonstrate(environment: Environment, problem: Problem, rng: random.Random) -> tuple[list[Message], Turn]:
    """Return a conversation in which an expert solves a problem, and its last turn."""
    episode = environment.start(problem)
    return play(episode, lambda: episode.expert(rng))


def environments(*, adapters: bool = True) -> list[str]:
    """Return the names of the environments that come with leanseek.

    Args:
        adapters: whether those that need another package are among them.
    """
    names = [module.name for module in pkgutil.iter_modules(leanseek.envs.__path__) if not module.ispkg]
    left_out = NOT_TASKS if adapters else (*NOT_TASKS, *ADAPTERS)
    return sorted(name for name in names if name not in left_out)


def environment_class(name: str) -> Any:
    """Return an environment's class, by its name or by the dotted name of a module that has one.

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
    return found[0]


def load_environment(name: str) -> Environment:
    """Return an environment by its name, or by the dotted name of a module that has one.

    Args:
        name: with an option after a colon, where the task takes one.
    Raises:
        TaskError: as `environment_class`, or an option that does not fit.
    """
    name, colon, option = name.partition(":")
    kind = environment_class(name)
    if colon and not kind.option:
        raise TaskError(f"environment {name!r} takes no option, but {option!r} stands after its colon")
    environment: Environment = kind(option if colon else None) if kind.option else kind()
    return environment
