"""running_total: add and subtract one-digit numbers one after the other."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from leanseek.envs.environment import Environment, Problem
from leanseek.messages import Message

_LINE = re.compile(r"([0-9]{1,2})([+-][0-9])=([0-9]{1,2})")


class RunningTotal(Environment):
    """A chain such as `56+2-7`; all totals stay within 0 .. 99."""

    name = "running_total"
    description = "add and subtract one-digit numbers one after the other"
    levels = (2, 3, 4, 5)

    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw a start and `level` one-digit steps."""
        start = total = rng.randint(0, 99)
        steps: list[int] = []
        while len(steps) < level:
            step = rng.choice((1, -1)) * rng.randint(1, 9)
            if 0 <= total + step <= 99:
                total += step
                steps.append(step)
        prompt = f"{start}{_written(steps)}"
        return Problem(self.name, level, prompt, {"start": start, "steps": tuple(steps), "answer": total}, prompt)

    def solution(self, problem: Problem, rng: random.Random) -> Message:
        """Write an equation per step, such as `56+2=58`."""
        total, lines = problem.data["start"], []
        for step in problem.data["steps"]:
            lines.append(f"{total}{step:+d}={total + step}")
            total += step
        return Message("assistant", str(total), "\n".join(lines))

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether the answer is the total, written as a plain number."""
        return answer == str(problem.data["answer"])

    def audit(self, problem: Problem, reasoning: str) -> bool:
        """Whether the equations take every step in order, copied and added right."""
        total, lines = problem.data["start"], reasoning.split("\n")
        if len(lines) != len(problem.data["steps"]):
            return False
        for step, line in zip(problem.data["steps"], lines, strict=True):
            match = _LINE.fullmatch(line)
            if match is None or (int(match[1]), int(match[2]), int(match[3])) != (total, step, total + step):
                return False
            total += step
        return True


def _written(steps: Sequence[int]) -> str:
    return "".join(f"{step:+d}" for step in steps)
