"""pointers: follow a table from number to number, so many steps."""

from __future__ import annotations

import random
import re
from itertools import pairwise

from leanseek.envs.environment import Environment, Problem, merge_steps
from leanseek.messages import Message

DISTRACTORS = 3  # rows of the table that the walk never comes to
_LINE = re.compile(r"([1-9]) ([0-9]+):([0-9]+)")


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

    def solution(self, problem: Problem, rng: random.Random, skip: float = 0.0) -> Message:
        """Write the steps, counted: `1 17:42`; a line may take several steps at once: `2 17:8`."""
        at, step, lines = problem.data["start"], 0, []
        for group in merge_steps(problem.level, rng, skip):
            before = at
            at, step = _walk(problem, at, len(group)), step + len(group)
            lines.append(f"{step} {before}:{at}")
        return Message("assistant", str(at), "\n".join(lines))

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether the answer is the number that the walk ends at."""
        return bool(answer == str(problem.data["answer"]))

    def audit(self, problem: Problem, reasoning: str) -> bool:
        """Whether every line goes on from the one before, and the steps lead where the table says."""
        at, step = problem.data["start"], 0
        for line in reasoning.split("\n"):
            match = _LINE.fullmatch(line)
            if match is None or not step < int(match[1]) <= problem.level:
                return False
            after = _walk(problem, at, int(match[1]) - step)
            if line != f"{match[1]} {at}:{after}":
                return False
            at, step = after, int(match[1])
        return bool(step == problem.level)


def _walk(problem: Problem, at: int, steps: int) -> int:
    """Return the number that so many steps lead to."""
    table: dict[int, int] = problem.data["table"]
    for _ in range(steps):
        at = table[at]
    return at
