"""sorting: put some labelled numbers in order, smallest first."""

from __future__ import annotations

import random
import re

from leanseek.envs.environment import LABELS, Environment, Problem, merge_steps
from leanseek.messages import Message

_LINE = re.compile(r"[a-j][0-9]+(?: [a-j][0-9]+)*=[0-9]+(?: [0-9]+)*")


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

    def solution(self, problem: Problem, rng: random.Random, skip: float = 0.0) -> Message:
        """Write one line per number after the first: it, and the numbers so far in order: `b8=8 17`."""
        numbers = problem.data["numbers"]
        groups = merge_steps(len(numbers) - 1, rng, skip)
        lines = [_line(numbers, group[0] + 1, group[-1] + 1) for group in groups]
        return Message("assistant", problem.data["answer"], "\n".join(lines))

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether the answer is the numbers in order, with a space between them."""
        return bool(answer == problem.data["answer"])

    def wrong_answer(self, problem: Problem) -> str:
        """Return the numbers in the opposite order."""
        return " ".join(reversed(problem.data["answer"].split()))

    def audit(self, problem: Problem, reasoning: str) -> bool:
        """Whether every line names the next numbers and has all so far in order."""
        numbers, at = problem.data["numbers"], 1
        for line in reasoning.split("\n"):
            if _LINE.fullmatch(line) is None:
                return False
            last = at + line.partition("=")[0].count(" ")
            if last >= len(numbers) or line != _line(numbers, at, last):
                return False
            at = last + 1
        return at == len(numbers)


def _line(numbers: tuple[int, ...], first: int, last: int) -> str:
    """Return the line that puts numbers `first` to `last` into their places among those before."""
    named = " ".join(f"{LABELS[i]}{numbers[i]}" for i in range(first, last + 1))
    return f"{named}={_listed(numbers[: last + 1])}"


def _listed(numbers: tuple[int, ...]) -> str:
    return " ".join(map(str, sorted(numbers)))
