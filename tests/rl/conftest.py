"""A task that a model with random weights solves now and then, so that there is something to learn."""

from __future__ import annotations

import random

import pytest

import leanseek.engine.shares as shares
from leanseek.envs.environment import Environment, Episode, Problem, Turn
from leanseek.messages import Message


class EvenEpisode(Episode):
    """Scores what was said as it stands, thinking or answer."""

    def step(self, reply: Message) -> Turn:
        said = reply.content + (reply.reasoning_content or "")
        return Turn((), True, {"correct": float(self.environment.check(self.problem, said)), "format": 1.0})


class Even(Environment):
    """Say something of even length."""

    name = "even"
    description = "say something of even length"
    levels = (1, 2, 3)

    def draw(self, level: int, rng: random.Random) -> Problem:
        prompt = str(rng.randrange(10**level, 10 ** (level + 1)))
        return Problem(self.name, level, prompt, {"answer": 0}, prompt)

    def solution(self, problem: Problem, rng: random.Random) -> Message:
        return Message("assistant", "ab", "cd")

    def check(self, problem: Problem, answer: str) -> bool:
        return len(answer) % 2 == 0

    def audit(self, problem: Problem, reasoning: str) -> bool:
        return True

    def start(self, problem: Problem) -> Episode:
        return EvenEpisode(self, problem)


@pytest.fixture(autouse=True)
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few samples are enough for an engine of its own here."""
    monkeypatch.setattr(shares, "LEAST_SAMPLES", 1)


@pytest.fixture
def even() -> Environment:
    return Even()
