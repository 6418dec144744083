"""grid_walk: follow moves on a grid and say where they end."""

from __future__ import annotations

import random
import re

from leanseek.envs.environment import Environment, Problem
from leanseek.messages import Message

SIDE = 20  # coordinates are 0 .. SIDE - 1
LONGEST = 5
MOVES = {"right": (1, 0), "left": (-1, 0), "up": (0, 1), "down": (0, -1)}
_LINE = re.compile(r"([0-9]{1,2}),([0-9]{1,2}) (right|left|up|down)([0-9])=([0-9]{1,2}),([0-9]{1,2})")

Move = tuple[str, int]
Place = tuple[int, int]


class GridWalk(Environment):
    """A place and moves, such as `12,7 up3 left5`."""

    name = "grid_walk"
    description = "follow moves on a grid and say where they end"
    levels = (2, 3, 4, 5)

    def draw(self, level: int, rng: random.Random) -> Problem:
        """Draw a start and `level` moves that stay on the grid."""
        start = place = (rng.randrange(SIDE), rng.randrange(SIDE))
        moves: list[Move] = []
        while len(moves) < level:
            move = (rng.choice(sorted(MOVES)), rng.randint(1, LONGEST))
            after = _walk(place, move)
            if all(0 <= coordinate < SIDE for coordinate in after):
                place = after
                moves.append(move)
        prompt = f"{start[0]},{start[1]}{''.join(f' {way}{length}' for way, length in moves)}"
        data = {"start": start, "moves": tuple(moves), "answer": f"{place[0]},{place[1]}"}
        return Problem(self.name, level, prompt, data, prompt)

    def solution(self, problem: Problem, rng: random.Random) -> Message:
        """Write a line per move, such as `12,7 up3=12,10`."""
        place, lines = problem.data["start"], []
        for move in problem.data["moves"]:
            after = _walk(place, move)
            lines.append(f"{place[0]},{place[1]} {move[0]}{move[1]}={after[0]},{after[1]}")
            place = after
        return Message("assistant", f"{place[0]},{place[1]}", "\n".join(lines))

    def check(self, problem: Problem, answer: str) -> bool:
        """Whether the answer is the last place, written `x,y`."""
        return bool(answer == problem.data["answer"])

    def wrong_answer(self, problem: Problem) -> str:
        """Return a place one step off."""
        x, y = problem.data["answer"].split(",")
        return f"{int(x) + 1},{y}"

    def audit(self, problem: Problem, reasoning: str) -> bool:
        """Whether every line follows its move, in order, to the right place."""
        place, moves = problem.data["start"], problem.data["moves"]
        lines = reasoning.split("\n")
        if len(lines) != len(moves):
            return False
        for move, line in zip(moves, lines, strict=True):
            match, after = _LINE.fullmatch(line), _walk(place, move)
            if match is None or (match[3], int(match[4])) != move:
                return False
            if (int(match[1]), int(match[2])) != place or (int(match[5]), int(match[6])) != after:
                return False
            place = after
        return True


def _walk(place: Place, move: Move) -> Place:
    """Return where a move leads, on the grid or off it."""
    (x, y), (right, up) = place, MOVES[move[0]]
    return x + right * move[1], y + up * move[1]
