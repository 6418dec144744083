"""World: a task that is acted in, by tool calls that are answered one by one, or by a plan carried out at once."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

from leanseek.envs.environment import Environment, Episode, Problem, Split, Turn
from leanseek.envs.worlds.skills import Call, Skill, read_call, read_plan, tool_call, written
from leanseek.errors import TaskError, nearest
from leanseek.messages import Message

# How skills are called: listed in the prompt as tools; the same without the list, for models that were taught them;
# or line by line in one reply.
WAYS = ("tools", "bare", "plan")


class State(Protocol):
    """A world under way; `progress` is how much of the goal is reached: from 0 on, and 1 where it is won."""

    @property
    def won(self) -> bool:
        """Whether the goal is reached."""

    @property
    def over(self) -> bool:
        """Whether nothing more can be done."""

    @property
    def progress(self) -> float:
        """How much of the goal is reached."""

    def act(self, call: Call) -> str:
        """Carry a skill out and return what is seen then."""


@dataclass(frozen=True)
class Step:
    """One call of the expert's, and the thinking that leads to it (it may be empty)."""

    call: Call
    thought: str = ""


class World(Environment):
    """A task with skills: `skills` can be called, `most_calls` end an episode, `intro` explains the prompt.

    Args:
        way: one of WAYS; None: tools.
    Raises:
        TaskError: an unknown way.
    """

    intro: str
    skills: tuple[Skill, ...]
    most_calls: int
    longest_answer = 400
    option = "tools (the default), bare (tools that the prompt does not list) or plan (all calls in one reply)"

    def __init__(self, way: str | None = None) -> None:
        self.way = way or "tools"
        if self.way not in WAYS:
            raise TaskError(f"{self.name}:{way}: accepted are {', '.join(WAYS)}{nearest(self.way, WAYS)}")
        self.multi_turn = self.way != "plan"  # type: ignore[misc]
        if self.way == "tools":
            self.tools = tuple(skill.spec() for skill in self.skills)

    @abstractmethod
    def propose(self, level: int, rng: random.Random) -> Problem:
        """Draw a problem, key and all, that may not be solvable yet: quickly, for most are of another split."""

    def finished(self, problem: Problem) -> Problem | None:
        """Return a proposed problem with all that it needs; None where the expert cannot solve it."""
        return problem

    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw a problem that the expert can solve."""
        while (problem := self.finished(self.propose(level, rng))) is None:
            pass
        return problem

    def draw_of(self, split: Split, level: int, rng: random.Random) -> Problem:
        """Draw such a problem of a split; only what is of the split is finished."""
        while True:
            proposed = self.propose(level, rng)
            if proposed.split == split and (problem := self.finished(proposed)) is not None:
                return problem

    @abstractmethod
    def open(self, problem: Problem) -> State:
        """Return the world as it is before the first call."""

    @abstractmethod
    def expert(self, problem: Problem) -> list[Step]:
        """Return calls that solve a problem."""

    def solution(self, problem: Problem, rng: random.Random) -> Message:
        """Return the expert's plan, its thinking first; its first call, where calls are answered."""
        if self.multi_turn:
            return self.start(problem).expert(rng)
        steps = self.expert(problem)
        return Message("assistant", "\n".join(written(step.call) for step in steps), _thinking(steps))

    def worked(self, problem: Problem, rng: random.Random) -> str:
        """Return the expert's thinking and calls as plain text; nothing is carried out, so it costs little."""
        if not self.multi_turn:
            return super().worked(problem, rng)
        lines = []
        for step in self.expert(problem):
            call = tool_call(step.call, self.skills, 0).tool_calls[0]
            lines += [*([step.thought] if step.thought else []), f"{call.name}{call.arguments}"]
        return "\n".join(lines)

    def practice(self, rng: random.Random) -> str:
        """Return a line of the expert's thinking, or of its calls where it does not think."""
        problem = next(self.problems("train", rng.getrandbits(48), [rng.choice(self.levels)]))
        thoughts = [step.thought for step in self.expert(problem) if step.thought]
        return rng.choice(thoughts) if thoughts else rng.choice(self.worked(problem, rng).split("\n"))

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether a plan, carried out in a fresh world, reaches the goal with its last call."""
        calls = read_plan(answer, self.skills, self.most_calls)
        return calls is not None and self._reaches(problem, calls)

    def audit(self, problem: Problem, reasoning: str) -> bool | None:
        """Whether a plan's thinking is the expert's; None where there is none, or several replies."""
        wanted = "" if self.multi_turn else _thinking(self.expert(problem))
        return reasoning == wanted if wanted else None

    def wrong_answer(self, problem: Problem) -> str:
        """Return a plan that stops before its end."""
        return written(self.expert(problem)[0].call)

    def calls_of(self, replies: Sequence[Message]) -> list[Call]:
        """Return the calls that replies made, as far as they can be read: tool calls, or the plan of the last."""
        if not self.multi_turn:
            return read_plan(replies[-1].content.strip(), self.skills, self.most_calls) or []
        calls = []
        for made in (call for reply in replies for call in reply.tool_calls):
            with suppress(ValueError):
                calls.append(read_call(made, self.skills))
        return calls

    def film(self, problem: Problem, calls: Sequence[Call]) -> bytes | None:
        """Return a film of what calls do, as an animated WebP; None for worlds that have no pictures."""
        return None

    def start(self, problem: Problem) -> Episode:
        """Begin an attempt."""
        return WorldEpisode(self, problem) if self.multi_turn else PlanEpisode(self, problem)

    def random_call(self, rng: random.Random) -> Call:
        """Return any skill with any arguments that it accepts."""
        skill = rng.choice(self.skills)
        return skill.name, tuple(rng.randint(one.low, one.high) for one in skill.arguments)

    def progress(self, problem: Problem, answer: str) -> float:
        """Return how far a plan gets; 0 where it is none."""
        calls = read_plan(answer, self.skills, self.most_calls)
        return 0.0 if calls is None else self._carried_out(problem, calls)[0].progress

    def _reaches(self, problem: Problem, calls: Sequence[Call]) -> bool:
        state, done = self._carried_out(problem, calls)
        return state.won and done == len(calls)

    def _carried_out(self, problem: Problem, calls: Sequence[Call]) -> tuple[State, int]:
        """Return a fresh world after calls, and how many were made before it was over."""
        state, done = self.open(problem), 0
        for call in calls:
            if state.over:
                break
            state.act(call)
            done += 1
        return state, done


class PlanEpisode(Episode):
    """One attempt by a plan. Beside `correct` and `format`, `progress` rewards how far a well-formed one gets."""

    environment: World

    def __init__(self, environment: World, problem: Problem) -> None:
        super().__init__(environment, problem)
        self._world = environment

    def step(self, reply: Message) -> Turn:
        """Carry a plan out."""
        turn = super().step(reply)
        far = self._world.progress(self.problem, reply.content.strip()) if turn.rewards["format"] else 0.0
        return replace(turn, rewards={**turn.rewards, "progress": far})


class WorldEpisode(Episode):
    """One attempt by tool calls: each is answered, until the world is over or calls run out."""

    environment: World

    def __init__(self, environment: World, problem: Problem) -> None:
        super().__init__(environment, problem)
        self._world = environment
        if environment.tools:
            self.messages = (Message("system", environment.intro), *self.messages)
        self._state: State | None = None
        self._calls, self._formed = 0, True
        self._steps: list[Step] | None = None

    def step(self, reply: Message) -> Turn:
        """Carry a reply out. Rewards: `correct` once the goal is reached, `format` if every call could be read, and
        `progress`.

        A reply without a call gives up.
        """
        if self._state is None:
            self._state = self._world.open(self.problem)
        state, messages, most = self._state, [], self._world.most_calls
        self._formed = self._formed and bool(reply.tool_calls)
        for call in reply.tool_calls[:most]:
            if state.over or self._calls >= most:
                text, self._formed = "it is over", False
            else:
                self._calls += 1
                try:
                    text = state.act(read_call(call, self._world.skills))
                except ValueError as error:
                    text, self._formed = str(error), False
            messages.append(Message("tool", text, tool_call_id=call.id, name=call.name))
        done = state.over or self._calls >= most or not reply.tool_calls
        won = float(state.over and state.won)
        rewards = {"correct": won, "format": float(self._formed), "progress": state.progress}
        return Turn(() if done else tuple(messages), done, rewards)

    def expert(self, rng: random.Random) -> Message:
        """Return the call that the expert would make now."""
        if self._steps is None:
            self._steps = self._world.expert(self.problem)
        step = self._steps[min(self._calls, len(self._steps) - 1)]
        return tool_call(step.call, self._world.skills, self._calls, step.thought)


def _thinking(steps: Sequence[Step]) -> str:
    return "\n".join(step.thought for step in steps if step.thought)
