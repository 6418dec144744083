"""pointers: follow a table from number to number, so many steps."""

from __future__ import annotations

import random
from itertools import pairwise

from leanseek.envs.environment import Environment, Problem
from leanseek.messages import Message

DISTRACTORS = 3  # rows of the table that the walk never comes to


class Pointers(Environment):
    """Rows such as `17:42`, in any order, then `from 17 take 3`."""

    name = "pointers"
    description = "follow a table from number to number, so many steps"
    levels = (2, 3, 4, 5)

    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw a walk of `level` steps that meets no number twice, and rows that lead from elsewhere into it."""
        walk = rng.sample(range(100), level + 1 + DISTRACTORS)
        walk, aside = walk[: level + 1], walk[level + 1 :]
        # The last number has a row too: it must not be known by having none.
        others = [(number, rng.choice(walk[:-1])) for number in (walk[-1], *aside)]
        rows = [*pairwise(walk), *others]
        rng.shuffle(rows)
        lines = [*(f"{source}:{target}" for source, target in rows), f"from {walk[0]} take {level}"]
        data = {"table": dict(rows), "start": walk[0], "answer": walk[-1]}
        key = " ".join(f"{source}:{target}" for source, target in sorted(rows)) + f" {walk[0]} {level}"
        return Problem(self.name, level, "\n".join(lines), data, key)

    def solution(self, problem: Problem, rng: random.Random) -> Message:
        """Write the steps, counted: `1 17:42`."""
        return Message("assistant", str(problem.data["answer"]), _thinking(problem))

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether the answer is the number that the walk ends at."""
        return bool(answer == str(problem.data["answer"]))

    def audit(self, problem: Problem, reasoning: str) -> bool:
        """Whether the steps lead where the table says: there is one way to be right."""
        return reasoning == _thinking(problem)


def _thinking(problem: Problem) -> str:
    table: dict[int, int] = problem.data["table"]
    at, lines = problem.data["start"], []
    for step in range(1, problem.level + 1):
        lines.append(f"{step} {at}:{table[at]}")
        at = table[at]
    return "\n".join(lines)
