"""largest: find the largest of some numbers."""

from __future__ import annotations

import random
import re

from leanseek.envs.environment import Environment, Problem
from leanseek.messages import Message

_LINE = re.compile(r"([0-9]{1,2}),([0-9]{1,2})=([0-9]{1,2})")


class Largest(Environment):
    """Distinct numbers such as `37,12,55`, in 0 .. 99; the thinking keeps the largest so far."""

    name = "largest"
    description = "find the largest of some numbers"
    levels = (3, 4, 5, 6, 7)

    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw `level` distinct numbers."""
        numbers = tuple(rng.sample(range(100), level))
        prompt = ",".join(map(str, numbers))
        return Problem(self.name, level, prompt, {"numbers": numbers, "answer": max(numbers)}, prompt)

    def solution(self, problem: Problem, rng: random.Random) -> Message:
        """Write a line per number after the first, with the largest before and after it: `37,12=37`, `37,55=55`."""
        best, *rest = problem.data["numbers"]
        lines = []
        for number in rest:
            lines.append(f"{best},{number}={max(best, number)}")
            best = max(best, number)
        return Message("assistant", str(best), "\n".join(lines))

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether the answer is the largest number."""
        return answer == str(problem.data["answer"])

    def audit(self, problem: Problem, reasoning: str) -> bool:
        """Whether each line takes the largest so far and the next number, and names the larger of the two."""
        best, *rest = problem.data["numbers"]
        lines = reasoning.split("\n")
        if len(lines) != len(rest):
            return False
        for number, line in zip(rest, lines, strict=True):
            match = _LINE.fullmatch(line)
            if match is None or (int(match[1]), int(match[2]), int(match[3])) != (best, number, max(best, number)):
                return False
            best = max(best, number)
        return True
