"""running_total: add one-digit numbers one after the other."""

from __future__ import annotations

import random
import re

from leanseek.envs.environment import Environment, Problem, merge_steps
from leanseek.messages import Message

_LINE = re.compile(r"(\d{1,2})((?:\+\d)+)=(\d{1,2})")


class RunningTotal(Environment):
    """A chain such as `56+2+7`; all totals stay within 0 .. 99."""

    name = "running_total"
    description = "add one-digit numbers one after the other"
    levels = (2, 3, 4)

    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw a start and `level` one-digit steps."""
        steps = tuple(rng.randint(1, 9) for _ in range(level))
        start = rng.randint(0, 99 - sum(steps))
        prompt = f"{start}{_written(steps)}"
        return Problem(self.name, level, prompt, {"start": start, "steps": steps, "answer": start + sum(steps)}, prompt)

    def solution(self, problem: Problem, rng: random.Random, skip: float = 0.0) -> Message:
        """Write an equation per step, such as `56+2=58`; merged steps share one: `56+2+7=65`."""
        steps, total, lines = problem.data["steps"], problem.data["start"], []
        for group in merge_steps(len(steps), rng, skip):
            taken = [steps[i] for i in group]
            lines.append(f"{total}{_written(taken)}={total + sum(taken)}")
            total += sum(taken)
        return Message("assistant", str(total), "\n".join(lines))

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether the answer is the total, written as a plain number."""
        return answer == str(problem.data["answer"])

    def audit(self, problem: Problem, reasoning: str) -> bool:
        """Whether the equations take every step in order, copied and added right."""
        steps, total, at = problem.data["steps"], problem.data["start"], 0
        for line in reasoning.split("\n"):
            match = _LINE.fullmatch(line)
            if match is None or int(match[1]) != total:
                return False
            taken = steps[at : at + len(match[2]) // 2]
            if match[2] != _written(taken) or int(match[3]) != total + sum(taken):
                return False
            total, at = int(match[3]), at + len(taken)
        return at == len(steps)


def _written(steps: list[int] | tuple[int, ...]) -> str:
    return "".join(f"+{step}" for step in steps)
