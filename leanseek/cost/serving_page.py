"""ServingPage: a plan of serving as one page: throughput and cost against the speed of a reply, memory, and sliders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from leanseek.cost.carbon import Grid
from leanseek.cost.hardware import all_hardware
from leanseek.cost.planner import default_precision
from leanseek.cost.serving import ServingPlan, plan_serving
from leanseek.cost.sheet import BOTTOM, LEFT, RIGHT, TOP, Scales, sheet
from leanseek.cost.summary import serving_tables
from leanseek.errors import UsageError
from leanseek.units import format_bytes, format_seconds

# Around what is planned, so that prices may be moved.
MARGIN = 4.0


def serving_page(title: str, plan: ServingPlan, grid: Grid) -> str:
    """Return the page.

    Args:
        title: what was planned.
        plan: of serving.
        grid: whose electricity it is.
    """
    data = serving_figures(plan)
    speed = _scales(data, "device_tokens_per_s")
    cost = _scales(data, "usd_per_million")
    data["scales"] = {"speed": (speed.x, speed.y), "cost": (cost.x, cost.y)}
    data["frame"] = (LEFT, RIGHT, TOP, BOTTOM)
    service, chosen = plan.service, plan.chosen
    read_s, write_s = service.prompt / plan.prefill_tokens_per_s, service.reply / chosen.device_tokens_per_s
    tables = serving_tables(plan, grid)
    held = [("weights", plan.weights_bytes), ("cache of the texts", chosen.texts * plan.text_bytes)]
    room = plan.machines.device.memory_bytes
    return sheet(
        "serving",
        title,
        grid,
        tables,
        data,
        rates=tables[1].rows,
        speed=speed,
        cost=cost,
        parts=[("prompt", read_s, format_seconds(read_s)), ("reply", write_s, format_seconds(write_s))],
        memory=[(name, size, format_bytes(size)) for name, size in held],
        room=(room, f"{format_bytes(room)} there are") if room else None,
        service=service,
    )


def serving_figures(plan: ServingPlan) -> dict[str, Any]:
    """Return what the page's script computes from: for each GPU that the model fits, its speeds at all batches.

    A request takes prompt x (1 - hits) / prefill + reply / decoding seconds of a device; devices, money, energy and
    carbon follow from the requests, the price and the share of the time that devices are busy.
    """
    service, machines = plan.service, plan.machines
    own, hardware = machines.device, {}
    for name, row in all_hardware().items():
        if row.kind != "gpu" or name == own.name:
            continue
        others = replace(machines, device=row, usd_per_device_hour=row.usd_per_hour)
        try:
            asked = replace(service, precision=default_precision(others))
            hardware[name] = _speeds(plan_serving(asked, others, None, plan.busy))
        except UsageError:  # the model does not fit
            continue
    hardware[own.name] = _speeds(plan)
    read_s, write_s = 1 / plan.prefill_tokens_per_s, 1 / plan.chosen.device_tokens_per_s
    each_s = service.prompt * read_s + service.reply * write_s
    return {
        "hardware": hardware,
        "prompt": service.prompt,
        "reply": service.reply,
        "planned": {
            "hardware": own.name,
            "speed": plan.chosen.user_tokens_per_s,
            "requests": machines.count * plan.busy / each_s,
            "price": machines.usd_per_device_hour or 0.0,
            "busy": plan.busy,
            "hits": service.hits,
        },
    }


def _speeds(plan: ServingPlan) -> dict[str, Any]:
    return {
        "title": plan.machines.device.title,
        "watts": plan.machines.device.watts,
        "usd_per_hour": plan.machines.usd_per_device_hour,
        # Of prompts of which the cache has nothing.
        "prefill": plan.prefill_tokens_per_s * (1 - plan.service.hits),
        "rates": [(rate.texts, rate.user_tokens_per_s, rate.device_tokens_per_s) for rate in plan.rates],
        "usd_per_million": [rate.usd_per_million for rate in plan.rates],
    }


def _scales(data: dict[str, Any], what: str) -> Scales:
    """Return scales that show every machine: the speed of a reply, and what a device gives or a million tokens cost."""
    rows = list(data["hardware"].values())
    across = [rate[1] for row in rows for rate in row["rates"]]
    if what == "device_tokens_per_s":
        up = [rate[2] for row in rows for rate in row["rates"]]
    else:
        up = [usd for row in rows for usd in row["usd_per_million"] if usd] or [0.01, 100.0]
    return Scales((min(across) / 1.2, max(across) * 1.2), (min(up) / MARGIN, max(up) * MARGIN))
