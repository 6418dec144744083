"""Summary: a plan in words: facts and tables, as rows of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from leanseek.cost.carbon import Grid, format_grams
from leanseek.cost.hardware import Hardware
from leanseek.cost.learning import LearningPlan
from leanseek.cost.search import Loser
from leanseek.cost.serving import ServingPlan
from leanseek.cost.training import RUN_SHARE, TrainingPlan
from leanseek.model.config import ModelConfig
from leanseek.units import (
    format_bytes,
    format_count,
    format_joules,
    format_percent,
    format_seconds,
    format_usd,
    format_watt_hours,
)

NOTHING = "-"
NO_PRICE = "no price is known; give --price"
# Narrower models spend their time between operations, which nothing here computes.
NARROW = 1024
NARROW_NOTE = "Gaps between operations are not modelled, and a model this narrow spends much of its time in them."


@dataclass(frozen=True)
class Table:
    """Rows of text.

    Args:
        rows: of equal length; the first may be a head.
        right: numbers of the columns with figures.
    """

    rows: Sequence[Sequence[str]]
    right: Sequence[int] = ()


def training_tables(found: TrainingPlan, losers: Sequence[Loser], grid: Grid | None) -> list[Table]:
    """Return a plan of training: facts, a step, memory, and why other layouts lose."""
    room = found.machines.device.memory_bytes
    space = f"{format_bytes(found.memory.total)} a device" + (f" of {format_bytes(room)}" if room else "")
    if not found.fits:
        space += f": {format_bytes(found.memory.total - room)} too many, it does not fit"
    facts = [
        ("on", found.machines.asked),
        ("work", f"{format_count(found.work.tokens)} tokens, {found.work.batch:,} x {found.work.length:,} a step"),
        ("layout", found.layout.text),
        ("memory", space),
        ("step", format_seconds(found.step_s)),
        (
            "speed",
            f"{found.tokens_per_device_s:,.0f} tokens a second and device, "
            f"{format_joules(found.joules / found.work.tokens)} a token",
        ),
        (
            "MFU",
            f"{format_percent(found.mfu)} causal, {format_percent(found.mfu_noncausal)} non-causal, of bf16's peak",
        ),
        *_bill(found.hours, found.device_hours, found.joules, found.usd, grid, found.machines.device),
    ]
    parts = [(part, format_seconds(s), format_percent(s / found.step_s)) for part, s in found.parts_s.items()]
    memory = [(part, format_bytes(size)) for part, size in found.memory.as_dict().items()]
    tables = [
        Table(facts),
        Table([("of a step", "", ""), *parts], (1, 2)),
        Table([("memory of the fullest device", ""), *memory], (1,)),
    ]
    if losers:
        rows = [(one.plan.layout.text, format_seconds(one.plan.step_s), one.why) for one in losers]
        tables.append(Table([("other layouts", "step", "why not"), *rows], (1,)))
    note = f"Whole runs reach {format_percent(RUN_SHARE)} of the speed that is modelled: calibrated on one run."
    return [*tables, Table([(note,)]), *_notes(found.work.config)]


def serving_tables(found: ServingPlan, grid: Grid | None) -> list[Table]:
    """Return a plan of serving: facts, and the ways to decode."""
    service, node = found.service, found.machines.device.per_node
    one = f"prompts of {service.prompt:,}, replies of {service.reply:,} tokens; {format_percent(service.hits)} cached"
    prefill = found.prefill_tokens_per_s
    facts = [
        ("on", found.machines.device.title),
        ("requests", one),
        ("experts", f"shared by {service.prefill_ep} devices in prefill, by {service.decode_ep} in decoding"),
        ("weights", f"{format_bytes(found.weights_bytes)} a device, which leaves room for {found.most_texts:,} texts"),
        ("busy", f"{format_percent(found.busy)} of the time; costs count the rest too"),
        ("prefill", f"{prefill:,.0f} tokens a second and device, {prefill * node:,.0f} a node of {node}, when busy"),
        ("prompt tokens", _million(found.prefill_usd_per_million, found.prefill_joules_per_token, grid)),
        ("reply tokens", _million(found.chosen.usd_per_million, found.chosen.joules_per_token, grid)),
    ]
    facts.append(("energy", power_model(found.machines.device)))
    head = ("texts a device", "tokens/s a reply", "tokens/s a device", "$ a million", "J a token", "")
    rows = [
        (
            f"{rate.texts:,}",
            f"{rate.user_tokens_per_s:.1f}",
            f"{rate.device_tokens_per_s:,.0f}",
            NOTHING if rate.usd_per_million is None else f"{rate.usd_per_million:.3f}",
            f"{rate.joules_per_token:.3f}",
            "chosen" if rate == found.chosen else "",
        )
        for rate in found.rates
    ]
    return [Table(facts), Table([head, *rows], range(5)), *_notes(service.config)]


def learning_tables(found: LearningPlan, grid: Grid | None) -> list[Table]:
    """Return a plan of reinforcement learning as facts."""
    task = found.learning
    split = "in turn on all devices"
    if found.split is not None:
        split = f"side by side: {format_percent(found.split)} of the devices sample, the others train"
    facts = [
        ("on", found.machines.asked),
        ("work", f"{task.steps:,} updates of {task.outputs:,} replies, {task.updates} to a round"),
        ("replies", f"{task.reply:,} tokens on the average, cut off at {task.longest:,}"),
        ("split", split),
        ("a round", f"sampling {format_seconds(found.sample_s)}, training {format_seconds(found.train_s)}"),
        ("training", found.layout.text),
        *_bill(found.hours, found.device_hours, found.joules, found.usd, grid, found.machines.device),
    ]
    return [Table(facts), *_notes(task.config)]


def row_table(row: Hardware) -> Table:
    """Return what was measured of a machine."""
    rates = ((row.fp32_flops, "FLOP/s in fp32"), (row.bf16_flops, "FLOP/s in bf16"), (row.memory_bytes_per_s, "B/s"))
    facts = [("machine", row.title), *(("reached", f"{value / 1e9:,.1f} G{unit}") for value, unit in rates)]
    return Table(
        [*facts, ("memory", format_bytes(row.memory_bytes)), ("power", f"{row.watts:g} W ({row.sources['watts']})")]
    )


def power_model(device: Hardware) -> str:
    """Return in words what planned energy rests on."""
    return f"{device.watts:g} W a device, which is its full power; hosts, network and cooling not counted"


def _notes(config: ModelConfig) -> list[Table]:
    return [Table([(NARROW_NOTE,)])] if config.hidden_size < NARROW else []


def _bill(
    hours: float, device_hours: float, joules: float, usd: float | None, grid: Grid | None, device: Hardware
) -> list[tuple[str, str]]:
    paid = f"{device_hours:,.0f}" if device_hours >= 10 else f"{device_hours:.3g}"
    lines = [
        ("time", f"{format_seconds(hours * 3600)}; {paid} device hours"),
        ("energy", f"{format_watt_hours(joules)}: {power_model(device)}"),
        ("money", NO_PRICE if usd is None else format_usd(usd)),
    ]
    if grid is not None:
        lines.insert(2, ("carbon", f"{format_grams(grid.grams(joules))} ({grid.name}, {grid.grams_per_kwh:g} g a kWh)"))
    return lines


def _million(usd: float | None, joules: float, grid: Grid | None) -> str:
    cost = NO_PRICE if usd is None else f"{format_usd(usd)} a million"
    carbon = "" if grid is None else f", {format_grams(grid.grams(joules * 1e6))} ({grid.name})"
    return f"{cost}, {format_watt_hours(joules * 1e6)}{carbon}"
