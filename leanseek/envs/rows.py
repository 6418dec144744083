"""Rows: a fixed set of problems, such as a file's, given out by split and level without end."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from leanseek.envs.environment import PARTS, Problem, Split
from leanseek.errors import TaskError


def in_turn(name: str, rows: Sequence[Problem], split: Split, seed: int, levels: Sequence[int]) -> Iterator[Problem]:
    """Yield the problems of a split, levels in turn, again and again, in another order each time.

    Args:
        name: of the environment.
        rows: all of its problems.
        split, seed, levels: as of `Environment.problems`.
    Raises:
        TaskError: the split has no problem of a level.
    """
    rng = random.Random(f"{name}/{split}/{seed}")
    own = {level: [row for row in rows if row.level == level and row.split == split] for level in levels}
    for level in levels:
        if not own[level]:
            raise TaskError(
                f"{name}: none of its problems of level {level} is in the split {split!r}, which gets about "
                f"{PARTS.count(split)} of {len(PARTS)}; give it more problems"
            )
    waiting: dict[int, list[Problem]] = {level: [] for level in levels}
    while True:
        for level in levels:
            if not waiting[level]:
                waiting[level] = rng.sample(own[level], len(own[level]))
            yield waiting[level].pop()
