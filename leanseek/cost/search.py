"""Search: the layout that makes a step shortest among those that fit, and why the best of the others do not win."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from heapq import heapify, heappop, heappush, nsmallest
from itertools import islice, product, takewhile, tee

from leanseek.cost.layers import LayerTimes, head_times, recomputed_times
from leanseek.cost.layout import RECOMPUTE, Layout, obstacle
from leanseek.cost.machines import Machines
from leanseek.cost.memory import Weights, device_memory, layer_weights, vocabulary_weights
from leanseek.cost.pipeline import bubble_formula
from leanseek.cost.roofline import Roofline
from leanseek.cost.schedules import CHUNKS, OVERLAPPING, SCHEDULES, stages_of
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
class Whole:
    """What the whole model takes and holds in a spread, on one device without a pipeline.

    Args:
        times: of one micro-batch.
        weights: that are held.
        roof: the device as it is used.
    """

    times: LayerTimes
    weights: Weights
    roof: Roofline

    def each_s(self, overlaps: bool) -> float:
        """Return the seconds of one micro-batch, whether or not all-to-all hides behind computation."""
        times = self.times
        compute = times.forward + times.input + times.weight
        open_ = 2 * (times.exchange - times.hidden)
        each = max(compute, 2 * times.exchange) if overlaps else compute + open_
        return each + 2 * times.reduce


@dataclass(frozen=True)
class Spread:
    """Layouts in which the model takes the same.

    Args:
        whole: what it takes.
        bases: the layouts for each length of the pipeline, without schedule and recomputation.
        overlaps: whether their schedules are those that hide all-to-all.
        recompute: of all.
    """

    whole: Whole
    bases: list[Layout]
    overlaps: bool
    recompute: str

    def layouts(self) -> Iterator[Layout]:
        """Yield the layouts."""
        for base in self.bases:
            if base.pp == 1:
                for zero in (1, 3) if base.dp > 1 else (1,):
                    yield replace(base, zero=zero, recompute=self.recompute)
            else:
                for schedule in SCHEDULES:
                    if (schedule in OVERLAPPING) == self.overlaps:
                        yield replace(base, schedule=schedule, recompute=self.recompute)


@dataclass(frozen=True)
class Candidate:
    """A layout, judged by formula.

    Args:
        layout: with its `dp`.
        whole: what the model takes in it.
        step_s: seconds of a step, roughly.
    """

    layout: Layout
    whole: Whole
    step_s: float


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
    found, again, every, first = tee(_ranked(work, machines, precision), 4)
    if next(first, None) is None:
        raise UsageError(
            f"no layout spreads a batch of {work.batch} texts evenly over {machines.count} devices; give a batch that "
            f"is a multiple of {machines.count}"
        )
    need = partial(_memory_bytes, work, machines)
    likely = _distinct(one for one in found if not room or need(one) <= room * ROUGHLY)
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
        plans += [plan_training(work, machines, one.layout) for one in nsmallest(LEANEST, every, key=need)]
    fitting = sorted((plan for plan in plans if plan.fits), key=lambda plan: plan.step_s)
    if not fitting:
        raise UsageError(_too_large(work, machines, precision))
    best = fitting[0]
    faster = takewhile(lambda one: one.step_s < best.step_s, again)
    large = islice(_distinct(one for one in faster if need(one) <= room * ALMOST), 2)
    too_large = [plan_training(work, machines, one.layout) for one in large]
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


def _distinct(found: Iterable[Candidate]) -> Iterator[Candidate]:
    """Keep the best of those that differ in little things alone."""
    seen: set[tuple[int, int, int, str, str]] = set()
    for one in found:
        key = (one.layout.pp, one.layout.ep, one.layout.tp, one.layout.schedule, one.layout.recompute)
        if key not in seen:
            seen.add(key)
            yield one


def _ranked(work: Work, machines: Machines, precision: str) -> Iterator[Candidate]:
    """Yield layouts, those first that are fastest by formula.

    However a spread's computing is cut into stages and put in order, it must be done: that bounds each of its layouts
    from below, and the formula is worked out for those alone whose bound has come.
    """
    waiting: list[tuple[float, tuple[int, ...], Candidate | Spread]] = []
    for number, spread in enumerate(_spreads(work, machines, precision)):
        first = spread.bases[0]
        each = spread.whole.each_s(spread.overlaps) * (1 - 1e-9)
        waiting.append((work.batch / (first.dp * first.pp * first.micro) * each, (0, number), spread))
    heapify(waiting)
    while waiting:
        _, _, one = heappop(waiting)
        if isinstance(one, Candidate):
            yield one
            continue
        for layout in one.layouts():
            if obstacle(work.config, layout, machines.count, work.batch) is None:
                order = SCHEDULES.index(layout.schedule), RECOMPUTE.index(layout.recompute)
                rank = (layout.pp, layout.tp, layout.ep, layout.micro, layout.zero, *order)
                candidate = Candidate(layout, one.whole, _step_s(work, layout, one.whole))
                heappush(waiting, (candidate.step_s, rank, candidate))


def _spreads(work: Work, machines: Machines, precision: str) -> Iterator[Spread]:
    config, devices = work.config, machines.count
    experts = config.n_routed_experts
    shares = [ep for ep in (2**power for power in range(11)) if ep == 1 or (experts and experts % ep == 0)]
    roofs: dict[bool, Roofline] = {}
    for tp in TENSORS_WITH_EXPERTS if experts else TENSORS:
        if tp > machines.device.per_node:
            continue
        pipelines = [(pp, devices // (pp * tp)) for pp in PIPELINES if devices % (pp * tp) == 0]
        for ep, micro in product(shares, MICROS):
            bases = [
                Layout(pp=pp, ep=ep, tp=tp, dp=dp, micro=micro, precision=precision)
                for pp, dp in pipelines
                if not (dp * tp) % ep and not work.batch % (dp * micro)
            ]
            for overlaps, those in ((True, [one for one in bases if one.pp > 1]), (False, bases)):
                if not those:
                    continue
                moves = overlaps and ep > 1
                if moves not in roofs:
                    example = replace(those[0], schedule=OVERLAPPING[0]) if overlaps else those[0]
                    roofs[moves] = roofline(example, machines)
                for recompute, whole in _wholes(work, those[0], roofs[moves]).items():
                    yield Spread(whole, those, overlaps, recompute)


def _wholes(work: Work, layout: Layout, roof: Roofline) -> dict[str, Whole]:
    """Return what the whole model takes and holds with each recomputation."""
    config = work.config
    shared = experts = 0.0
    times = dict.fromkeys(RECOMPUTE, LayerTimes())
    dense = min(config.first_k_dense_replace if config.n_routed_experts else config.num_hidden_layers, work.layers)
    kinds = [(0, dense)] if dense else []
    if work.layers > dense:
        kinds.append((config.num_hidden_layers - 1, config.num_hidden_layers - dense))
    if work.layers > config.num_hidden_layers:
        kinds.append((config.num_hidden_layers, 1))
    for layer, number in kinds:
        one, held = recomputed_times(config, layout, roof, layer, work.length), layer_weights(config, layout, layer)
        times = {recompute: times[recompute] + one[recompute].scaled(number) for recompute in RECOMPUTE}
        shared, experts = shared + number * held.shared, experts + number * held.experts
    head = head_times(config, layout, roof, work.length, 1 + work.layers - config.num_hidden_layers)
    vocabulary = vocabulary_weights(config, layout).shared
    weights = Weights(shared + (1 if config.tie_word_embeddings else 2) * vocabulary, experts)
    return {recompute: Whole(times[recompute] + head, weights, roof) for recompute in RECOMPUTE}


def _step_s(work: Work, layout: Layout, whole: Whole) -> float:
    micro_batches = work.batch // (layout.dp * layout.micro)
    times, each = whole.times, whole.each_s(layout.overlaps)
    stages = stages_of(layout.schedule, layout.pp)
    forward = (times.forward + times.exchange) / stages
    back = (times.input + times.weight + times.exchange) / stages
    bubble = 0.0
    if layout.pp > 1 and layout.schedule == "zbv":
        bubble = (layout.pp - 1) * forward
    elif layout.pp > 1:
        weight = times.weight / stages
        bubble = bubble_formula(layout.schedule, layout.pp, forward, back, weight, each / stages)
    uneven, own = _fullest(work, layout, whole.weights)
    seconds = micro_batches * each / layout.pp * uneven + max(bubble, 0.0)
    return seconds + sync_s([own], layout, whole.roof, micro_batches, seconds)


def _memory_bytes(work: Work, machines: Machines, candidate: Candidate) -> float:
    """Return the bytes of the fullest device, roughly."""
    layout, whole = candidate.layout, candidate.whole
    uneven, own = _fullest(work, layout, whole.weights)
    kept: float = layout.pp
    if layout.schedule in CHUNKS:
        kept += (layout.pp - 1) / CHUNKS[layout.schedule]
    elif layout.overlaps:
        kept += 1
    activations = whole.times.kept_bytes / layout.pp * (kept * _fuller(uneven) if layout.pp > 1 else 1)
    room = machines.device.memory_bytes
    return device_memory(work.config, layout, own, activations, work.length, True, room).total


def _fullest(work: Work, layout: Layout, weights: Weights) -> tuple[float, Weights]:
    """Return how much more than its share the fullest device has, as layers are whole, and what it holds."""
    twice = 2 if layout.schedule == "dualpipe" and layout.pp > 1 else 1
    mean = twice * work.layers / layout.pp
    uneven = math.ceil(mean) / mean
    share = twice * _fuller(uneven) / layout.pp
    return uneven, Weights(weights.shared * share, weights.experts * share)


def _fuller(uneven: float) -> float:
    # Of memory a bound from above: what is kept is not as uneven. A low guess costs a trial, a high one a plan.
    return 1 + (uneven - 1) / 3


def _too_large(work: Work, machines: Machines, precision: str) -> str:
    """Say how much is lacking, and how many devices would be enough."""
    room = machines.device.memory_bytes
    least = min(_ranked(work, machines, precision), key=partial(_memory_bytes, work, machines))
    need = max(plan_training(work, machines, least.layout).memory.total, _memory_bytes(work, machines, least))
    count, enough = machines.count, "more devices or larger ones"
    for _ in range(DOUBLED):
        count *= 2
        more, larger = replace(machines, count=count), replace(work, batch=work.batch * (count // machines.count))
        needs = (_memory_bytes(larger, more, one) for one in _ranked(larger, more, precision))
        if min(needs, default=math.inf) <= room * LIKELY:
            enough = f"{count:,} devices or larger ones"
            break
    return (
        f"no layout fits {machines.asked}: the one that needs least, {least.layout.text}, needs "
        f"{format_bytes(need)} a device and there are {format_bytes(room)}, {format_bytes(need - room)} too few; take "
        f"{enough}, or shorter texts"
    )
