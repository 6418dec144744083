"""Search: the layout that makes a step shortest among those that fit, and why the best of the others do not win."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from leanseek.cost.layers import LayerTimes, head_times, layer_times
from leanseek.cost.layout import RECOMPUTE, Layout, obstacle
from leanseek.cost.machines import Machines
from leanseek.cost.memory import Weights, device_memory, layer_weights, vocabulary_weights
from leanseek.cost.pipeline import bubble_formula
from leanseek.cost.roofline import Roofline
from leanseek.cost.schedules import CHUNKS, SCHEDULES, stages_of
from leanseek.cost.step import Work, roofline, sync_s
from leanseek.cost.training import RUN_SHARE, TrainingPlan, plan_training
from leanseek.errors import UsageError
from leanseek.units import format_bytes, format_seconds

# At most so many layouts are simulated, and so many of them with ZBV; all others are ranked by formula.
TRIED, DEAR = 17, 1
SHOWN = 6
PIPELINES = (1, 2, 4, 8, 16, 32)
TENSORS, TENSORS_WITH_EXPERTS = (1, 2, 4, 8), (1, 2, 8)
MICROS = (1, 2, 4)
# The formula may find this times the memory that the simulation finds.
ROUGHLY = 1.03
# Layouts that are tried where none of the fast ones fits.
LEANEST = 5
# Faster layouts are worth telling of if they need no more than this times what there is.
ALMOST = 1.5
# Where nothing fits: how often the number of devices is doubled to see what would, and how sure that must be.
DOUBLED, LIKELY = 6, 0.9


@dataclass(frozen=True)
class Candidate:
    """A layout, judged by formula.

    Args:
        layout: with its `dp`.
        step_s: seconds of a step, roughly.
        memory_bytes: of the fullest device, roughly.
    """

    layout: Layout
    step_s: float
    memory_bytes: float


@dataclass(frozen=True)
class Loser:
    """A plan that did not win, and why.

    Args:
        plan: of its layout.
        why: in words, against the one that won.
    """

    plan: TrainingPlan
    why: str


def search(work: Work, machines: Machines, precision: str) -> tuple[TrainingPlan, list[Loser]]:
    """Return the best plan and the best of the rest.

    Raises:
        UsageError: nothing fits; the message says by how much, and what would.
    """
    room = machines.device.memory_bytes
    found = sorted(_candidates(work, machines, precision), key=lambda one: one.step_s)
    if not found:
        raise UsageError(
            f"no layout spreads a batch of {work.batch} texts evenly over {machines.count} devices; give a batch that "
            f"is a multiple of {machines.count}"
        )
    likely = _distinct([one for one in found if not room or one.memory_bytes <= room * ROUGHLY])
    plans: list[TrainingPlan] = []
    for one in likely:
        # The formula leaves out what makes stages uneven: what it finds slower than a plan, is slower.
        if len(plans) == TRIED or one.step_s / RUN_SHARE > min((p.step_s for p in plans if p.fits), default=math.inf):
            break
        # ZBV's order is found anew for each layout, which takes longest.
        if one.layout.schedule == "zbv" and sum(plan.layout.schedule == "zbv" for plan in plans) == DEAR:
            continue
        plans.append(plan_training(work, machines, one.layout))
    if not any(plan.fits for plan in plans):
        # None of the fast ones fits; then those that need least, if anything does.
        leanest = sorted(found, key=lambda one: one.memory_bytes)
        plans += [plan_training(work, machines, one.layout) for one in leanest[:LEANEST]]
    fitting = sorted((plan for plan in plans if plan.fits), key=lambda plan: plan.step_s)
    if not fitting:
        raise UsageError(_too_large(work, machines, found))
    best = fitting[0]
    large = [one for one in found if one.memory_bytes <= room * ALMOST and one.step_s < best.step_s]
    too_large = [plan_training(work, machines, one.layout) for one in _distinct(large)[:2]]
    others = {plan.layout: plan for plan in (*too_large, *plans) if plan.layout != best.layout}
    losers = [Loser(plan, why_not(plan, best)) for plan in sorted(others.values(), key=lambda plan: plan.step_s)]
    return best, losers[:SHOWN]


def why_not(plan: TrainingPlan, best: TrainingPlan) -> str:
    """Return in words what a plan has against it."""
    room = plan.machines.device.memory_bytes
    if not plan.fits:
        return f"does not fit: {format_bytes(plan.memory.total - room)} too many"
    parts = [
        (seconds - best.parts_s[part], part) for part, seconds in plan.parts_s.items() if "not modelled" not in part
    ]
    longer, part = max(parts)
    if plan.step_s <= best.step_s * 1.002:
        return "as fast"
    return f"{format_seconds(longer)} more of {part}" if longer > 0 else "slower all over"


def _distinct(found: list[Candidate]) -> list[Candidate]:
    """Keep the best of those that differ in little things alone."""
    seen: dict[tuple[int, int, int, str, str], Candidate] = {}
    for one in found:
        key = (one.layout.pp, one.layout.ep, one.layout.tp, one.layout.schedule, one.layout.recompute)
        seen.setdefault(key, one)
    return list(seen.values())


def _candidates(work: Work, machines: Machines, precision: str) -> Iterator[Candidate]:
    config, devices, sums = work.config, machines.count, _Sums(work, machines)
    experts = config.n_routed_experts
    spreads = [ep for ep in (2**power for power in range(11)) if ep == 1 or (experts and experts % ep == 0)]
    for pp in PIPELINES:
        for tp in TENSORS_WITH_EXPERTS if experts else TENSORS:
            if devices % (pp * tp) or tp > machines.device.per_node:
                continue
            dp = devices // (pp * tp)
            for ep in spreads:
                if (dp * tp) % ep:
                    continue
                base = Layout(pp=pp, ep=ep, tp=tp, dp=dp, precision=precision)
                for micro in MICROS:
                    if work.batch % (dp * micro):
                        continue
                    for zero in (1, 3) if pp == 1 and dp > 1 else (1,):
                        yield from _variants(work, machines, replace(base, micro=micro, zero=zero), sums)


class _Sums:
    """What the whole model takes and holds, kept for all layouts for which that is the same."""

    def __init__(self, work: Work, machines: Machines) -> None:
        self._work, self._machines = work, machines
        self._roofs: dict[bool, Roofline] = {}
        self._found: dict[tuple[int, int, int, str, bool], tuple[LayerTimes, Weights]] = {}

    def of(self, layout: Layout) -> tuple[LayerTimes, Weights, Roofline]:
        """Return what that is in a layout, and the device as it uses it."""
        moves = layout.overlaps and layout.ep > 1
        if moves not in self._roofs:
            self._roofs[moves] = roofline(layout, self._machines)
        roof, key = self._roofs[moves], (layout.ep, layout.tp, layout.micro, layout.recompute, moves)
        if key not in self._found:
            self._found[key] = _whole(self._work, layout, roof)
        return *self._found[key], roof


def _variants(work: Work, machines: Machines, base: Layout, sums: _Sums) -> Iterator[Candidate]:
    """Judge one spread with every recomputation and every schedule."""
    schedules = SCHEDULES if base.pp > 1 else ("1f1b",)
    for schedule in schedules:
        layout = replace(base, schedule=schedule)
        if obstacle(work.config, layout, machines.count, work.batch):
            continue
        for recompute in RECOMPUTE:
            layout = replace(layout, recompute=recompute)
            yield _judged(work, machines, layout, *sums.of(layout))


def _whole(work: Work, layout: Layout, roof: Roofline) -> tuple[LayerTimes, Weights]:
    """Return what the whole model takes and holds."""
    config = work.config
    times, shared, experts = LayerTimes(), 0.0, 0.0
    dense = min(config.first_k_dense_replace if config.n_routed_experts else config.num_hidden_layers, work.layers)
    kinds = [(0, dense)] if dense else []
    if work.layers > dense:
        kinds.append((config.num_hidden_layers - 1, config.num_hidden_layers - dense))
    if work.layers > config.num_hidden_layers:
        kinds.append((config.num_hidden_layers, 1))
    for layer, number in kinds:
        one, held = layer_times(config, layout, roof, layer, work.length), layer_weights(config, layout, layer)
        times = times + one.scaled(number)
        shared, experts = shared + number * held.shared, experts + number * held.experts
    times = times + head_times(config, layout, roof, work.length, 1 + work.layers - config.num_hidden_layers)
    vocabulary = vocabulary_weights(config, layout).shared
    return times, Weights(shared + (1 if config.tie_word_embeddings else 2) * vocabulary, experts)


def _judged(
    work: Work, machines: Machines, layout: Layout, times: LayerTimes, weights: Weights, roof: Roofline
) -> Candidate:
    micro_batches = work.batch // (layout.dp * layout.micro)
    compute = times.forward + times.input + times.weight
    open_ = 2 * (times.exchange - times.hidden)
    each = max(compute, 2 * times.exchange) if layout.overlaps else compute + open_
    each += 2 * times.reduce
    stages = stages_of(layout.schedule, layout.pp)
    forward = (times.forward + times.exchange) / stages
    back = (times.input + times.weight + times.exchange) / stages
    bubble = 0.0
    if layout.pp > 1 and layout.schedule == "zbv":
        bubble = (layout.pp - 1) * forward
    elif layout.pp > 1:
        weight = times.weight / stages
        bubble = bubble_formula(layout.schedule, layout.pp, forward, back, weight, each / stages)
    twice = 2 if layout.schedule == "dualpipe" and layout.pp > 1 else 1
    # Layers are whole, so the fullest device has more than its share.
    mean = twice * work.layers / layout.pp
    uneven = math.ceil(mean) / mean
    seconds = micro_batches * each / layout.pp * uneven + max(bubble, 0.0)
    # Of memory that is a bound from above: what is kept is not as uneven. A low guess costs a trial, a high one a plan.
    fuller = 1 + (uneven - 1) / 3
    share = twice * fuller / layout.pp
    own = Weights(weights.shared * share, weights.experts * share)
    seconds += sync_s([own], layout, roof, micro_batches, seconds)
    kept: float = layout.pp
    if layout.schedule in CHUNKS:
        kept += (layout.pp - 1) / CHUNKS[layout.schedule]
    elif layout.overlaps:
        kept += 1
    activations = times.kept_bytes / layout.pp * (kept * fuller if layout.pp > 1 else 1)
    room = machines.device.memory_bytes
    memory = device_memory(work.config, layout, own, activations, work.length, True, room)
    return Candidate(layout, seconds, memory.total)


def _too_large(work: Work, machines: Machines, found: list[Candidate]) -> str:
    """Say how much is lacking, and how many devices would be enough."""
    room = machines.device.memory_bytes
    least = min(found, key=lambda one: one.memory_bytes)
    need = max(plan_training(work, machines, least.layout).memory.total, least.memory_bytes)
    count, enough = machines.count, "more devices or larger ones"
    for _ in range(DOUBLED):
        count *= 2
        more, precision = replace(machines, count=count), least.layout.precision
        texts = work.batch * (count // machines.count)
        needs = (one.memory_bytes for one in _candidates(replace(work, batch=texts), more, precision))
        if min(needs, default=math.inf) <= room * LIKELY:
            enough = f"{count:,} devices or larger ones"
            break
    return (
        f"no layout fits {machines.asked}: the one that needs least, {least.layout.text}, needs "
        f"{format_bytes(need)} a device and there are {format_bytes(room)}, {format_bytes(need - room)} too few; take "
        f"{enough}, or shorter texts"
    )
