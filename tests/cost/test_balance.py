"""Stages are as even as trying everything can make them."""

from __future__ import annotations

import itertools

import pytest

from leanseek.cost.balance import balanced, partition
from leanseek.cost.schedules import held_stages, stages_of


def cuts(number: int, stages: int):
    for places in itertools.combinations(range(1, number), stages - 1):
        yield [b - a for a, b in itertools.pairwise((0, *places, number))]


def sums(costs, counts) -> list[float]:
    ends = [0, *itertools.accumulate(counts)]
    return [sum(costs[a:b]) for a, b in itertools.pairwise(ends)]


COSTS = ([1] * 8, [1, 1, 1, 1, 1, 1, 1, 1.3, 3.5], [5, 1, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6, 7])


@pytest.mark.parametrize("costs", COSTS)
@pytest.mark.parametrize("stages", [1, 2, 4, 5])
def test_the_dearest_stage_is_as_cheap_as_can_be(costs, stages):
    found = partition(costs, stages)
    assert sum(found) == len(costs) and len(found) == stages and min(found) >= 1
    assert max(sums(costs, found)) == pytest.approx(min(max(sums(costs, one)) for one in cuts(len(costs), stages)))


@pytest.mark.parametrize("costs", COSTS)
@pytest.mark.parametrize(("schedule", "devices"), [("dualpipe", 4), ("zbv", 2), ("dualpipev", 2), ("1f1b", 4)])
def test_the_busiest_device_has_as_little_as_can_be(costs, schedule, devices):
    def most(counts) -> float:
        each = sums(costs, counts)
        return max(sum(each[s] for s in held_stages(schedule, devices, d)) for d in range(devices))

    stages = stages_of(schedule, devices)
    best = min(most(one) for one in cuts(len(costs), stages))
    assert most(balanced(costs, schedule, devices)) <= best * 1.1
