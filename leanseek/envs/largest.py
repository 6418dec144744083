"""largest: find the largest of some numbers."""

from __future__ import annotations

import random
import re

from leanseek.envs.environment import Environment, Problem, merge_steps
from leanseek.messages import Message

_LINE = re.compile(r"(\d{1,2})((?:,\d{1,2})+)=(\d{1,2})")


class Largest(Environment):
    """Distinct numbers such as `37,12,55`, in 0 .. 99; the thinking keeps the largest so far."""

    name = "largest"
    description = "find the largest of some numbers"
    levels = (3, 4, 5)

    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw `level` distinct numbers."""
        numbers = tuple(rng.sample(range(100), level))
        prompt = ",".join(map(str, numbers))
        return Problem(self.name, level, prompt, {"numbers": numbers, "answer": max(numbers)}, prompt)

    def solution(self, problem: Problem, rng: random.Random, skip: float = 0.0) -> Message:
        """Write a line per number after the first: `37,12=37`, `37,55=55`; merged ones share it: `37,12,55=55`."""
        first, *rest = problem.data["numbers"]
        best, lines = first, []
        for group in merge_steps(len(rest), rng, skip):
            taken = [rest[i] for i in group]
            lines.append(f"{best}{_written(taken)}={max(best, *taken)}")
            best = max(best, *taken)
        return Message("assistant", str(best), "\n".join(lines))

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether the answer is the largest number."""
        return answer == str(problem.data["answer"])

    def audit(self, problem: Problem, reasoning: str) -> bool:
        """Whether each line takes the largest so far and the next numbers, and names the largest of them."""
        numbers = problem.data["numbers"]
        best, at = numbers[0], 1
        for line in reasoning.split("\n"):
            match = _LINE.fullmatch(line)
            if match is None or int(match[1]) != best:
                return False
            taken = numbers[at : at + match[2].count(",")]
            if not taken or match[2] != _written(taken) or int(match[3]) != max(best, *taken):
                return False
            best, at = int(match[3]), at + len(taken)
        return at == len(numbers)


def _written(numbers: list[int] | tuple[int, ...]) -> str:
    return "".join(f",{number}" for number in numbers)
