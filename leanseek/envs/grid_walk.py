"""grid_walk: follow moves on a grid and say where they end."""

from __future__ import annotations

import random
import re

from leanseek.envs.environment import Environment, Problem, merge_steps
from leanseek.messages import Message

SIDE = 10  # coordinates are 0 .. SIDE - 1
LONGEST = 3
MOVES = {"right": (0, 1), "left": (0, -1), "up": (1, 1), "down": (1, -1)}
_LINE = re.compile(r"(\d),(\d)((?: (?:right|left|up|down)\d)+)=(\d),(\d)")

Move = tuple[str, int]
Place = tuple[int, int]


class GridWalk(Environment):
    """A place and moves, such as `2,7 up1 left2`."""

    name = "grid_walk"
    description = "follow moves on a grid and say where they end"
    levels = (2, 3, 4)

    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw a start and `level` moves that stay on the grid."""
        start = place = draw_place(rng)
        moves: list[Move] = []
        while len(moves) < level:
            move = draw_move(rng)
            if on_grid(walk(place, move)):
                place = walk(place, move)
                moves.append(move)
        prompt = f"{start[0]},{start[1]}{_written(moves)}"
        data = {"start": start, "moves": tuple(moves), "answer": f"{place[0]},{place[1]}"}
        return Problem(self.name, level, prompt, data, prompt)

    def solution(self, problem: Problem, rng: random.Random, skip: float = 0.0) -> Message:
        """Write a line per move, such as `2,5 up3=2,8`; merged moves share one."""
        place, lines = problem.data["start"], []
        moves = problem.data["moves"]
        for group in merge_steps(len(moves), rng, skip):
            before, taken = place, [moves[i] for i in group]
            for move in taken:
                place = walk(place, move)
            lines.append(f"{before[0]},{before[1]}{_written(taken)}={place[0]},{place[1]}")
        return Message("assistant", f"{place[0]},{place[1]}", "\n".join(lines))

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether the answer is the last place, written `x,y`."""
        return answer == problem.data["answer"]

    def wrong_answer(self, problem: Problem) -> str:
        """Return a place one step off."""
        x, y = problem.data["answer"].split(",")
        return f"{int(x) + 1},{y}"

    def audit(self, problem: Problem, reasoning: str) -> bool:
        """Whether every line follows its moves, in order, to the right place."""
        place, at = problem.data["start"], 0
        moves = problem.data["moves"]
        for line in reasoning.split("\n"):
            match = _LINE.fullmatch(line)
            if match is None or (int(match[1]), int(match[2])) != place:
                return False
            taken = moves[at : at + match[3].count(" ")]
            if match[3] != _written(taken):
                return False
            for move in taken:
                place = walk(place, move)
            at += len(taken)
            if (int(match[4]), int(match[5])) != place:
                return False
        return at == len(moves)


def draw_place(rng: random.Random) -> Place:
    """Draw a place on the grid."""
    return rng.randrange(SIDE), rng.randrange(SIDE)


def draw_move(rng: random.Random) -> Move:
    """Draw a direction and a length."""
    return rng.choice(sorted(MOVES)), rng.randint(1, LONGEST)


def walk(place: Place, move: Move) -> Place:
    """Return where a move leads, on the grid or off it."""
    axis, sign = MOVES[move[0]]
    x, y = place
    return (x + sign * move[1], y) if axis == 0 else (x, y + sign * move[1])


def on_grid(place: Place) -> bool:
    """Whether a place is on the grid."""
    return all(0 <= coordinate < SIDE for coordinate in place)


def _written(moves: list[Move] | tuple[Move, ...]) -> str:
    return "".join(f" {way}{length}" for way, length in moves)
