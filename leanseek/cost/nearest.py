"""Nearest: the layout that fits and differs least from one that does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from leanseek.cost.layout import RECOMPUTE, Layout
from leanseek.cost.training import TrainingPlan, plan_training
from leanseek.errors import UsageError

# Changes at most, and layouts that are looked at: beyond that, searching anew says more.
CHANGES, LOOKED_AT = 3, 80


def nearest_fit(plan: TrainingPlan) -> TrainingPlan | None:
    """Return the plan that fits with the fewest changes of its layout, of those the fastest; None: none is near.

    A change is a doubled pipeline, expert or tensor parallelism, half a micro-batch, more recomputation, shared
    weights, or a schedule that keeps less.

    Args:
        plan: that does not fit.
    """
    seen, edge, looked_at = {_asked(plan.layout)}, [_asked(plan.layout)], 0
    for _ in range(CHANGES):
        edge = [one for layout in edge for one in _changed(layout)]
        edge = [one for one in dict.fromkeys(edge) if one not in seen]
        seen.update(edge)
        fitting = []
        for layout in edge:
            looked_at += 1
            if looked_at > LOOKED_AT:
                break
            try:
                found = plan_training(plan.work, plan.machines, layout)
            except UsageError:  # it cannot be
                continue
            if found.fits:
                fitting.append(found)
        if fitting:
            return min(fitting, key=lambda one: one.step_s)
    return None


def _asked(layout: Layout) -> Layout:
    """Return a layout whose replicas are whatever there is room for."""
    return replace(layout, dp=0)


def _changed(layout: Layout) -> Iterator[Layout]:
    at = RECOMPUTE.index(layout.recompute)
    if at + 1 < len(RECOMPUTE):
        yield replace(layout, recompute=RECOMPUTE[at + 1])
    if layout.micro > 1:
        yield replace(layout, micro=layout.micro // 2)
    if layout.zero == 0:
        yield replace(layout, zero=1)
    if layout.zero != 3:
        yield replace(layout, zero=3)
    for part in ("pp", "ep", "tp"):
        yield replace(layout, **{part: 2 * getattr(layout, part)})
    if layout.schedule != "1f1b":
        yield replace(layout, schedule="1f1b")
