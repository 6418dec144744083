"""grid_walk: follow labelled moves on a grid and say where they end."""

from __future__ import annotations

import random
import re

from leanseek.envs.environment import LABELS, Environment, Problem, merge_steps
from leanseek.messages import Message

SIDE = 50  # coordinates are 0 .. SIDE - 1
MOVES = {"right": (0, 1), "left": (0, -1), "up": (1, 1), "down": (1, -1)}
_LINE = re.compile(r"((?:[a-j] )+)(\d{1,2}),(\d{1,2})", re.ASCII)
_STEP = re.compile(r"([a-j]) ([xy]) (\d{1,2}) ([+-]\d) =(\d{1,2})", re.ASCII)


class GridWalk(Environment):
    """A place `x,y`, then moves such as `a up 3`."""

    name = "grid_walk"
    description = "follow labelled moves on a grid and say where they end"
    levels = (2, 3, 4, 5)

    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw a start and `level` moves that stay on the grid."""
        start = (rng.randrange(SIDE), rng.randrange(SIDE))
        place = list(start)
        moves: list[tuple[str, int]] = []
        while len(moves) < level:
            way, length = rng.choice(sorted(MOVES)), rng.randint(1, 9)
            axis, sign = MOVES[way]
            if 0 <= place[axis] + sign * length < SIDE:
                place[axis] += sign * length
                moves.append((way, length))
        lines = [f"at {start[0]},{start[1]}", *(f"{LABELS[i]} {w} {n}" for i, (w, n) in enumerate(moves)), "where?"]
        key = f"{start[0]},{start[1]} " + " ".join(f"{way}{length}" for way, length in moves)
        data = {"start": start, "moves": tuple(moves), "answer": f"{place[0]},{place[1]}"}
        return Problem(self.name, level, "\n".join(lines), data, key)

    def solution(self, problem: Problem, rng: random.Random, skip: float = 0.0) -> Message:
        """Write the new place after each move, such as `a 12 +3 =15,7`; merged moves give only the place."""
        place, lines = list(problem.data["start"]), []
        moves = problem.data["moves"]
        for group in merge_steps(len(moves), rng, skip):
            labels = "".join(f"{LABELS[i]} " for i in group)
            before = list(place)
            for i in group:
                axis, sign = MOVES[moves[i][0]]
                place[axis] += sign * moves[i][1]
            if len(group) == 1:
                axis, sign = MOVES[moves[group[0]][0]]
                shift = sign * moves[group[0]][1]
                lines.append(f"{labels}{'xy'[axis]} {before[axis]} {shift:+d} ={place[axis]} {place[0]},{place[1]}")
            else:
                lines.append(f"{labels}{place[0]},{place[1]}")
        return Message("assistant", f"{place[0]},{place[1]}", "\n".join(lines))

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether the answer is the last place, written `x,y`."""
        return bool(answer == problem.data["answer"])

    def wrong_answer(self, problem: Problem) -> str:
        """Return a place one step off."""
        x, y = problem.data["answer"].split(",")
        return f"{int(x) + 1},{y}"

    def audit(self, problem: Problem, reasoning: str) -> bool:
        """Whether every line follows its moves, in order, to the right place."""
        place, at = list(problem.data["start"]), 0
        moves = problem.data["moves"]
        for line in reasoning.split("\n"):
            step = _STEP.fullmatch(line.rsplit(" ", 1)[0])
            if step is not None:
                line = f"{step[1]} {line.rsplit(' ', 1)[1]}"
            match = _LINE.fullmatch(line)
            if match is None:
                return False
            labels = match[1].split()
            if labels != list(LABELS[at : at + len(labels)]) or at + len(labels) > len(moves):
                return False
            before = list(place)
            for way, length in moves[at : at + len(labels)]:
                axis, sign = MOVES[way]
                place[axis] += sign * length
            if step is not None:
                axis, sign = MOVES[moves[at][0]]
                shown = (step[2], int(step[3]), int(step[4]), int(step[5]))
                if shown != ("xy"[axis], before[axis], sign * moves[at][1], place[axis]):
                    return False
            at += len(labels)
            if [int(match[2]), int(match[3])] != place:
                return False
        return at == len(moves)
