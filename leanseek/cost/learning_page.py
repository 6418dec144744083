"""LearningPage: a plan of reinforcement learning as one page: rollouts against training, the long tail, and sliders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from leanseek.cost.carbon import Grid
from leanseek.cost.hardware import all_hardware
from leanseek.cost.learning import POINTS, Learning, LearningPlan, alive, ways
from leanseek.cost.machines import Machines
from leanseek.cost.planner import default_precision
from leanseek.cost.sheet import sheet
from leanseek.cost.summary import learning_tables
from leanseek.errors import UsageError
from leanseek.units import format_seconds

# Mean replies that can be asked for, as shares of the planned ones.
REPLIES = (0.5, 1.0, 2.0)


def learning_page(title: str, plan: LearningPlan, grid: Grid) -> str:
    """Return the page.

    Args:
        title: what was planned.
        plan: of reinforcement learning.
        grid: whose electricity it is.
    """
    task = plan.learning
    positions = [task.longest * n / POINTS for n in range(POINTS + 1)]
    # Just before the end: there the rest is cut off.
    tail = [(n / POINTS, alive(task, min(at, task.longest - 1))) for n, at in enumerate(positions)]
    data = learning_figures(plan)
    parts = [("sampling", plan.sample_s, format_seconds(plan.sample_s))]
    parts.append(("training", plan.train_s, format_seconds(plan.train_s)))
    return sheet(
        "learning",
        title,
        grid,
        learning_tables(plan, grid),
        data,
        columns=range(max(len(found) for row in data["hardware"].values() for found in row["ways"] if found)),
        parts=parts,
        tail=" ".join(f"{60 + 930 * across:.1f},{210 - 200 * up:.1f}" for across, up in tail),
        task=task,
        in_turn=plan.split is None,
    )


def learning_figures(plan: LearningPlan) -> dict[str, Any]:
    """Return what the page's script computes from: for each GPU, each length of replies and each way to share devices
    out, the seconds of a round's sampling and training.

    Hours = updates / updates of a round x seconds of a round; money, energy and carbon follow.
    """
    task, machines = plan.learning, plan.machines
    own = machines.device
    hardware: dict[str, dict[str, Any]] = {}
    for name, row in {own.name: own, **all_hardware()}.items():
        if row.kind != own.kind or (own.kind == "cpu" and name != own.name):
            continue
        there = machines
        asked = task
        if name != own.name:
            there = replace(machines, device=row, usd_per_device_hour=row.usd_per_hour)
            asked = replace(task, precision=default_precision(there))
        found = [_ways(replace(asked, reply=round(share * task.reply)), there, plan) for share in REPLIES]
        if found[REPLIES.index(1.0)]:
            price = there.usd_per_device_hour
            hardware[name] = {"title": row.title, "watts": row.watts, "usd_per_hour": price, "ways": found}
    splits = [split for split, *_ in hardware[own.name]["ways"][REPLIES.index(1.0)]]
    return {
        "hardware": hardware,
        "replies": [round(share * task.reply) for share in REPLIES],
        "devices": machines.count,
        "units": machines.units,
        "updates": task.updates,
        "planned": {
            "hardware": own.name,
            "steps": task.steps,
            "reply": REPLIES.index(1.0),
            "way": splits.index(plan.split),
            "price": machines.usd_per_device_hour or 0.0,
        },
    }


def _ways(task: Learning, machines: Machines, plan: LearningPlan) -> Sequence[tuple[float | None, float, float]]:
    """Return share of the devices that sample, seconds of sampling and of training; nothing where it does not fit.

    Training is laid out as planned; on the planned machines, where that does not fit, as is best.
    """
    layout = replace(plan.layout, precision=task.precision)
    for one in (layout, None) if machines == plan.machines else (layout,):
        try:
            return [(way.split, way.sample_s, way.train_s) for way in ways(task, machines, one)]
        except UsageError:
            continue
    return []
