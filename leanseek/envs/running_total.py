"""running_total: add and subtract labelled numbers one after the other."""

from __future__ import annotations

import random
import re

from leanseek.envs.environment import LABELS, Environment, Problem, merge_steps
from leanseek.messages import Message

_LINE = re.compile(r"((?:[a-j] )+)(\d{1,2})((?: [+-]\d)+) =(\d{1,2})", re.ASCII)


class RunningTotal(Environment):
    """A start, then steps such as `a +2`; all totals stay within 0 .. 99."""

    name = "running_total"
    description = "add and subtract labelled numbers one after the other"
    levels = (2, 3, 4, 5, 6)

    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw a start and `level` one-digit steps."""
        start = total = rng.randint(0, 99)
        steps: list[int] = []
        while len(steps) < level:
            step = rng.choice((1, -1)) * rng.randint(1, 9)
            if 0 <= total + step <= 99:
                total += step
                steps.append(step)
        lines = [f"start {start}", *(f"{LABELS[i]} {step:+d}" for i, step in enumerate(steps)), "total?"]
        key = f"{start}{''.join(f'{step:+d}' for step in steps)}"
        data = {"start": start, "steps": tuple(steps), "answer": total}
        return Problem(self.name, level, "\n".join(lines), data, key)

    def solution(self, problem: Problem, rng: random.Random, skip: float = 0.0) -> Message:
        """Write one line per step, such as `a 56 +2 =58`; merged steps share a line: `a b 56 +2 -7 =51`."""
        steps, total, lines = problem.data["steps"], problem.data["start"], []
        for group in merge_steps(len(steps), rng, skip):
            labels = "".join(f"{LABELS[i]} " for i in group)
            after = total + sum(steps[i] for i in group)
            lines.append(f"{labels}{total}{''.join(f' {steps[i]:+d}' for i in group)} ={after}")
            total = after
        return Message("assistant", str(total), "\n".join(lines))

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether the answer is the total, written as a plain number."""
        return answer == str(problem.data["answer"])

    def audit(self, problem: Problem, reasoning: str) -> bool:
        """Whether the lines take every step in order, copied and added right."""
        steps, total, at = problem.data["steps"], problem.data["start"], 0
        for line in reasoning.split("\n"):
            match = _LINE.fullmatch(line)
            if match is None:
                return False
            labels, operands = match[1].split(), [int(text) for text in match[3].split()]
            if labels != list(LABELS[at : at + len(labels)]) or operands != list(steps[at : at + len(labels)]):
                return False
            at += len(labels)
            if int(match[2]) != total or total + sum(operands) != int(match[4]):
                return False
            total = int(match[4])
        return at == len(steps)
