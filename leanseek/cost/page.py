"""Page: a plan of training as one self-contained page: pipeline, memory, roofline, costs, and sliders for what if."""

from __future__ import annotations

from typing import Any

from leanseek.cost.carbon import Grid, format_grams
from leanseek.cost.hardware import all_hardware
from leanseek.cost.machines import Machines
from leanseek.cost.orders import FORWARD, FULL, INPUT, PAIR, WEIGHT
from leanseek.cost.pipeline import Trace, simulate
from leanseek.cost.roofline import BYTES, Roofline, layer_products
from leanseek.cost.sheet import COLOURS, Scales, sheet
from leanseek.cost.step import Work, roofline, stage_times, stages
from leanseek.cost.summary import training_tables
from leanseek.cost.training import TrainingPlan
from leanseek.errors import UsageError
from leanseek.model.count import training_flops_per_token
from leanseek.units import format_bytes, format_flops, format_percent, format_seconds, format_usd

KINDS = {
    FORWARD: "forward",
    INPUT: "gradient of inputs",
    WEIGHT: "gradient of weights",
    FULL: "whole backward pass",
    PAIR: "forward and backward, overlapped",
}


def plan_page(title: str, plan: TrainingPlan, grid: Grid) -> str:
    """Return the page.

    Args:
        title: what was planned.
        plan: of training.
        grid: whose electricity it is.
    """
    room = plan.machines.device.memory_bytes
    memory = {name: size for name, size in plan.memory.as_dict().items() if name != "total"}
    dollars = None if plan.usd is None else plan.usd / plan.step_s
    parts = [
        (
            name,
            seconds,
            format_seconds(seconds) + ("" if dollars is None else f", {format_usd(seconds * dollars)} of the run"),
        )
        for name, seconds in plan.parts_s.items()
    ]
    return sheet(
        "plan",
        title,
        grid,
        training_tables(plan, [], grid),
        figures(plan),
        flops=format_flops(training_flops_per_token(plan.work.config, plan.work.length)),
        shown={
            "days": f"{plan.days:,.3g}",
            "hours": f"{plan.device_hours:,.4g}",
            "money": "?" if plan.usd is None else format_usd(plan.usd),
            "energy": f"{plan.joules / 3.6e6:,.3g} kWh",
            "carbon": format_grams(grid.grams(plan.joules)),
            "priced": plan.usd is not None,
        },
        parts=parts,
        memory=[(name, size, format_bytes(size)) for name, size in memory.items()],
        room=(room, f"{format_bytes(room)} there are") if room else None,
        roof=_roof(plan),
        **_pipeline(plan),
    )


def figures(plan: TrainingPlan) -> dict[str, Any]:
    """Return what the page's script computes from: the plan's own figures, and the hardware's that could be instead.

    Hours = tokens x FLOPs of a token / (peak x utilisation); money, energy and carbon follow from hours.
    """
    rows = {
        name: _machine(row.title, row.bf16_flops, row.watts, row.usd_per_hour) for name, row in all_hardware().items()
    }
    own, price = plan.machines.device, plan.machines.usd_per_device_hour
    name = "planned" if own.name not in rows or own != all_hardware()[own.name] else own.name
    rows[name] = _machine(plan.machines.asked if name == "planned" else own.title, own.bf16_flops, own.watts, price)
    return {
        "hardware": rows,
        "flops_per_token": training_flops_per_token(plan.work.config, plan.work.length),
        "planned": {
            "tokens": plan.work.tokens,
            "hardware": name,
            "devices": plan.machines.count,
            "price": price or 0.0,
            "mfu": plan.mfu,
        },
    }


def _machine(title: str, flops: float, watts: float, usd_per_hour: float | None) -> dict[str, Any]:
    return {"title": title, "flops": flops, "watts": watts, "usd_per_hour": usd_per_hour}


def _pipeline(plan: TrainingPlan) -> dict[str, Any]:
    """Return the pipeline's operations as blocks, of as many micro-batches as show how it fills and empties."""
    layout, work, machines = plan.layout, plan.work, plan.machines
    every = work.batch // (layout.dp * layout.micro)
    facts = {"micro_all": every, "schedule": layout.schedule, "bubble": format_percent(plan.bubble_share)}
    if layout.pp == 1:
        return {**facts, "spans": [], "height": 0, "kinds": [], "micro": every}
    trace, drawn = _drawn(work, machines, plan, every)
    scale, names = 960 / trace.seconds, list(KINDS)
    rows = []
    for device, spans in enumerate(trace.spans):
        blocks = [
            {
                "x": round(34 + start * scale, 2),
                "width": round(max((end - start) * scale - 0.3, 0.2), 2),
                "colour": names.index(op.kind),
                "title": f"{KINDS[op.kind]}, stage {op.stage}, micro-batch {op.batch}",
            }
            for op, start, end in spans
        ]
        rows.append({"device": device, "y": 18 * device, "blocks": blocks})
    return {**facts, "spans": rows, "height": 18 * layout.pp, "kinds": list(KINDS.values()), "micro": drawn}


def _drawn(work: Work, machines: Machines, plan: TrainingPlan, every: int) -> tuple[Trace, int]:
    layout, roof = plan.layout, roofline(plan.layout, plan.machines)
    times = stage_times(stages(work, layout, roof)[0], layout, roof, work)
    for count in (min(every, 2 * layout.pp), min(every, 2 * layout.pp + 2), every):
        try:
            trace = simulate(layout.schedule, layout.pp, count, times)
        except UsageError:  # the schedule wants another number
            continue
        if trace.spans:
            return trace, count
    return Trace(plan.step_s, (plan.step_s,), (1,), ((),)), every


def _roof(plan: TrainingPlan) -> dict[str, Any]:
    """Return the device's roofline and what is modelled of a layer's products, as places in the drawing."""
    layout, device = plan.layout, plan.machines.device
    roof: Roofline = roofline(layout, plan.machines)
    peak, bandwidth = device.peak_flops(layout.precision), device.memory_bytes_per_s
    points: dict[str, tuple[float, float]] = {}
    config = plan.work.config
    tokens = layout.micro * plan.work.length
    for one in layer_products(config, config.num_hidden_layers - 1):
        groups = one.groups / layout.ep if one.groups > 1 else 1.0
        rows = tokens * one.copies / groups
        size = BYTES[layout.precision]
        flops = 2.0 * groups * rows * one.inner * one.outer
        moved = groups * (one.inner * one.outer * size + rows * (one.inner * size + one.outer * max(size, 2.0)))
        name = f"{one.name} {one.inner}x{one.outer}"
        points[name] = (flops / moved, flops / roof.product_s(rows, one.outer, one.inner, groups))
    lowest_x = min(*(x for x, _ in points.values()), peak / bandwidth) / 3
    highest_x = max(*(x for x, _ in points.values()), peak / bandwidth) * 3
    lowest_y, highest_y = min(min(y for _, y in points.values()), bandwidth * lowest_x) / 1.5, peak * 1.5

    scales = Scales((lowest_x, highest_x), (lowest_y, highest_y), said_y=format_flops)
    corner = [(lowest_x, bandwidth * lowest_x), (peak / bandwidth, peak), (highest_x, peak)]
    return {
        "scales": scales,
        "line": scales.line(corner),
        "points": [
            {
                "at": scales.at(x, y),
                "colour": number % COLOURS,
                "title": f"{name}: {format_flops(y)}/s, {format_percent(y / min(peak, bandwidth * x))} of the roof",
            }
            for number, (name, (x, y)) in enumerate(points.items())
        ],
    }
