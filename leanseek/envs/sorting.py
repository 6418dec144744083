"""sorting: put some labelled numbers in order, smallest first."""

from __future__ import annotations

import random

from leanseek.envs.environment import LABELS, Environment, Problem
from leanseek.messages import Message


class Sorting(Environment):
    """Distinct numbers in 0 .. 99; the thinking puts one after the other into its place."""

    name = "sorting"
    description = "put some labelled numbers in order, smallest first"
    levels = (3, 4, 5, 6)

    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw `level` distinct numbers."""
        numbers = tuple(rng.sample(range(100), level))
        lines = [*(f"{LABELS[i]}{number}" for i, number in enumerate(numbers)), "sorted?"]
        data = {"numbers": numbers, "answer": _listed(numbers)}
        return Problem(self.name, level, "\n".join(lines), data, " ".join(map(str, numbers)))

    def solution(self, problem: Problem, rng: random.Random) -> Message:
        """Write one line per number after the first: it, and the numbers so far in order: `b8=8 17`."""
        return Message("assistant", problem.data["answer"], _thinking(problem.data["numbers"]))

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether the answer is the numbers in order, with a space between them."""
        return bool(answer == problem.data["answer"])

    def wrong_answer(self, problem: Problem) -> str:
        """Return the numbers in the opposite order."""
        return " ".join(reversed(problem.data["answer"].split()))

    def audit(self, problem: Problem, reasoning: str) -> bool:
        """Whether every line names the next number and has all so far in order: there is one way to be right."""
        return reasoning == _thinking(problem.data["numbers"])


def _thinking(numbers: tuple[int, ...]) -> str:
    return "\n".join(f"{LABELS[i]}{numbers[i]}={_listed(numbers[: i + 1])}" for i in range(1, len(numbers)))


def _listed(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, sorted(numbers)))
