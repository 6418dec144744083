"""largest: find the largest of some labelled numbers."""

from __future__ import annotations

import random
import re

from leanseek.envs.environment import LABELS, Environment, Problem, merge_steps
from leanseek.messages import Message

_LINE = re.compile(r"((?:[a-j] )+)((?:\d{1,2} )+)\|(\d{1,2}) =(\d{1,2})", re.ASCII)


class Largest(Environment):
    """Distinct numbers in 0 .. 99; the thinking keeps the largest so far."""

    name = "largest"
    description = "find the largest of some labelled numbers"
    levels = (3, 4, 5, 6, 7)

    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw `level` distinct numbers."""
        numbers = tuple(rng.sample(range(100), level))
        lines = [*(f"{LABELS[i]} {number}" for i, number in enumerate(numbers)), "largest?"]
        data = {"numbers": numbers, "answer": max(numbers)}
        return Problem(self.name, level, "\n".join(lines), data, " ".join(map(str, numbers)))

    def solution(self, problem: Problem, rng: random.Random, skip: float = 0.0) -> Message:
        """Write one line per number after the first: label, number, the largest before, and after: `b 42 |17 =42`."""
        numbers = problem.data["numbers"]
        best, lines = numbers[0], []
        for group in merge_steps(len(numbers) - 1, rng, skip):
            items = [numbers[i + 1] for i in group]
            labels = "".join(f"{LABELS[i + 1]} " for i in group)
            before, best = best, max(best, *items)
            lines.append(f"{labels}{''.join(f'{n} ' for n in items)}|{before} ={best}")
        return Message("assistant", str(best), "\n".join(lines))

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether the answer is the largest number."""
        return answer == str(problem.data["answer"])

    def audit(self, problem: Problem, reasoning: str) -> bool:
        """Whether every line names the next numbers, the largest before, and the largest after."""
        numbers = problem.data["numbers"]
        best, at = numbers[0], 1
        for line in reasoning.split("\n"):
            match = _LINE.fullmatch(line)
            if match is None:
                return False
            labels, items = match[1].split(), [int(text) for text in match[2].split()]
            end = at + len(labels)
            if labels != list(LABELS[at:end]) or items != list(numbers[at:end]) or int(match[3]) != best:
                return False
            best, at = max(best, *items), end
            if int(match[4]) != best:
                return False
        return at == len(numbers)
