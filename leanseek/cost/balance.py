"""Balance: which layers make up which stage of a pipeline, so that its busiest device has as little to do as can be."""

from __future__ import annotations

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
    # In whole numbers, so that equal loads are equal however they are summed.
    sums = [0, *accumulate(round(SCALE * cost / sum(costs)) for cost in costs)]

    def loads(bounds: list[int]) -> tuple[list[int], list[int]]:
        """Return what each device has, and each stage: stages of a device should be alike too."""
        each = [sums[b] - sums[a] for a, b in pairwise((0, *bounds))]
        return [each[one] + each[other] for one, other in held], each

    bounds = list(accumulate(counts))
    best = tuple(sorted(one, reverse=True) for one in loads(bounds))
    while True:
        found = None
        other = {stage: pair[pair[0] == stage] for pair in held for stage in pair}
        # Hand one layer of the busiest device that can be helped to another stage; all between them move along by one.
        for _, busiest in sorted(zip(loads(bounds)[0], held, strict=True), reverse=True):
            for giver in busiest:
                if bounds[giver] - (bounds[giver - 1] if giver else 0) == 1:
                    continue  # it would be empty; those between keep as many layers as they have
                for taker in range(stages):
                    if giver == taker:
                        continue
                    first, last, step = (giver, taker, -1) if giver < taker else (taker, giver, 1)
                    # Nearly always the taker's device would have too much: then the others need not be looked at.
                    had = 0
                    for stage in (taker, other[taker]):
                        end = bounds[stage] + (step if first <= stage < last else 0)
                        begin = (bounds[stage - 1] + (step if first < stage <= last else 0)) if stage else 0
                        had += sums[end] - sums[begin]
                    if had > (found[0] if found else best)[0][0]:
                        continue
                    moved = bounds.copy()
                    moved[first:last] = [b + step for b in bounds[first:last]]
                    theirs, each = loads(moved)
                    least = found[0] if found else best
                    if max(theirs) <= least[0][0]:
                        now = (sorted(theirs, reverse=True), sorted(each, reverse=True))
                        if now < least:
                            found = (now, moved)
            if found is not None:
                break
        if found is None:
            return [b - a for a, b in pairwise((0, *bounds))]
        best, bounds = found


def partition(costs: Sequence[float], stages: int) -> list[int]:
    """Cut a row of costs into stages whose dearest is as cheap as can be; return how many belong to each.

    Args:
        costs: in order.
        stages: at most as many as there are costs; none is empty.
    """
    low, high = max(costs), sum(costs)
    high *= 1 + 1e-9
    for _ in range(50):
        middle = (low + high) / 2
        if _cut(costs, stages, middle) is None:
            low = middle
        else:
            high = middle
    found = _cut(costs, stages, high)
    assert found is not None, "the sum of all always fits"
    return found


def _cut(costs: Sequence[float], stages: int, limit: float) -> list[int] | None:
    """Fill stages one after the other up to a limit; None: they do not hold everything."""
    counts: list[int] = []
    room = 0.0
    for place, cost in enumerate(costs):
        # Each stage that is not open yet needs something of what is left.
        short = len(costs) - place <= stages - len(counts)
        if not counts or cost > room or short:
            if len(counts) == stages or cost > limit:
                return None
            counts.append(0)
            room = limit
        counts[-1] += 1
        room -= cost
    return counts if len(counts) == stages else None
