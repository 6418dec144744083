"""Balance: which layers make up which stage of a pipeline, so that its busiest device has as little to do as can be."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise

from leanseek.cost.schedules import held_stages, stages_of

# Shares of all costs are counted in so many parts.
SCALE = 10**12


def balanced(costs: Sequence[float], schedule: str, devices: int) -> list[int]:
    """Return how many of a row of costs belong to each stage; no stage is empty.

    Args:
        costs: of layers (and of the head) in order.
        schedule: of the pipeline: where devices hold two stages, their sum counts.
        devices: of the pipeline.
    """
    stages = stages_of(schedule, devices)
    # Devices with many small stages are even without being evened out.
    counts = partition(costs, stages)
    if stages == 1 or len(held_stages(schedule, devices, 0)) != 2:
        return counts
    held = [held_stages(schedule, devices, device) for device in range(devices)]
    sums = _sums(costs)

    def devices_of(each: list[int]) -> list[int]:
        return [each[one] + each[another] for one, another in held]

    other = {stage: pair[pair[0] == stage] for pair in held for stage in pair}
    bounds = list(accumulate(counts))
    each = [sums[b] - sums[a] for a, b in pairwise((0, *bounds))]
    # What each device has, and each stage: stages of a device should be alike too.
    best = sorted(devices_of(each), reverse=True), sorted(each, reverse=True)
    while True:
        found = None
        # What a bound has more if it moves along by one, and stages both of whose bounds do.
        more = {step: [sums[b + step] - sums[b] for b in bounds[:-1]] for step in (1, -1)}
        along = {step: [sums[b + step] - sums[a + step] for a, b in pairwise(bounds[:-1])] for step in (1, -1)}
        # Hand one layer of the busiest device that can be helped to another stage; all between them move along by one.
        for _, busiest in sorted(zip(devices_of(each), held, strict=True), reverse=True):
            for giver in busiest:
                if bounds[giver] - (bounds[giver - 1] if giver else 0) == 1:
                    continue  # it would be empty; those between keep as many layers as they have
                for taker in range(stages):
                    if giver == taker:
                        continue
                    first, last, step = (giver, taker, -1) if giver < taker else (taker, giver, 1)
                    least = found[0] if found else best
                    # Nearly always the taker's device would have too much: then the others need not be looked at.
                    mate = other[taker]
                    had = each[taker] + (more[1][taker] if taker < giver else -more[-1][taker - 1])
                    had += along[step][mate - 1] if first < mate < last else each[mate]
                    if had > least[0][0] and mate != giver:
                        continue
                    stages_have = each.copy()
                    stages_have[first + 1 : last] = along[step][first : last - 1]
                    stages_have[first] += more[step][first]
                    stages_have[last] -= more[step][last - 1]
                    devices_have = devices_of(stages_have)
                    devices_have.sort(reverse=True)
                    if devices_have <= least[0]:
                        now = devices_have, sorted(stages_have, reverse=True)
                        if now < least:
                            found = now, stages_have, (first, last, step)
            if found is not None:
                break
        if found is None:
            return [b - a for a, b in pairwise((0, *bounds))]
        best, each, (first, last, step) = found
        bounds[first:last] = [b + step for b in bounds[first:last]]


def partition(costs: Sequence[float], stages: int) -> list[int]:
    """Cut a row of costs into stages whose dearest is as cheap as can be; return how many belong to each.

    Args:
        costs: in order.
        stages: at most as many as there are costs; none is empty.
    """
    sums = _sums(costs)
    low, high = max(b - a for a, b in pairwise(sums)), sums[-1]
    while low < high:
        middle = (low + high) // 2
        if _cut(sums, stages, middle) is None:
            low = middle + 1
        else:
            high = middle
    found = _cut(sums, stages, high)
    assert found is not None, "the sum of all always fits"
    return found


def _sums(costs: Sequence[float]) -> list[int]:
    """Return sums up to each place, in whole numbers, so that equal loads are equal however they are summed."""
    total = sum(costs)
    return [0, *accumulate(round(SCALE * cost / total) for cost in costs)]


def _cut(sums: list[int], stages: int, limit: int) -> list[int] | None:
    """Fill stages one after the other up to a limit; None: they do not hold everything."""
    counts, begin = [], 0
    for left in range(stages - 1, -1, -1):
        # Each stage that is not open yet needs something of what is left.
        end = min(bisect_right(sums, sums[begin] + limit) - 1, len(sums) - 1 - left)
        counts.append(end - begin)
        begin = end
    return counts if begin == len(sums) - 1 else None
