"""Cut: parts lose nothing, and the longest first are more even than runs in order."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from leanseek.train.objectives.cut import share_out


@dataclass(frozen=True)
class Thing:
    name: int
    tokens: int


def things(seed: int, count: int = 40) -> list[Thing]:
    rng = random.Random(seed)
    return [Thing(i, 1 + int(rng.expovariate(1 / 60))) for i in range(count)]


@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize(("count", "tokens"), [(1, None), (2, None), (7, None), (2, 300), (60, None)])
def test_nothing_is_lost_and_nothing_doubled(by_length, count, tokens):
    given = things(0)
    parts = share_out(given, count, tokens, by_length=by_length)
    assert all(parts) and sorted(t.name for part in parts for t in part) == list(range(len(given)))
    if tokens is None:
        assert len(parts) <= count
    assert share_out([], count, tokens, by_length=by_length) == []


def test_without_sorting_the_parts_are_runs_in_order():
    given = things(1)
    assert [t for part in share_out(given, 5, None) for t in part] == given


@pytest.mark.parametrize("seed", range(5))
def test_longest_first_is_even(seed):
    given = things(seed)
    for count in (2, 4, 8):
        sizes = [sum(t.tokens for t in part) for part in share_out(given, count, None, by_length=True)]
        best = max(sum(sizes) / count, max(t.tokens for t in given))
        assert max(sizes) <= 4 / 3 * best, "Graham's bound"
        in_order = [sum(t.tokens for t in part) for part in share_out(given, count, None)]
        assert max(sizes) <= max(in_order)
    limited = share_out(given, 1, 400, by_length=True)
    assert max(sum(t.tokens for t in part) for part in limited) <= 4 / 3 * 400
