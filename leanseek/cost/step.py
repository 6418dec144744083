"""Step: which stages a training step is cut into, what each takes and holds, and where the step's seconds go."""

from __future__ import annotations

from dataclasses import dataclass

from leanseek.cost.balance import balanced
from leanseek.cost.layers import LayerTimes, head_times, layer_times
from leanseek.cost.layout import Layout
from leanseek.cost.machines import Machines
from leanseek.cost.memory import LOW_STATE_BYTES, Memory, Weights, device_memory, layer_weights, vocabulary_weights
from leanseek.cost.pipeline import StageTimes, Trace
from leanseek.cost.roofline import Roofline
from leanseek.cost.schedules import held_stages
from leanseek.model.config import ModelConfig

# Multiprocessors that move data where all-to-all hides behind computation: 20 of 132 (V3 report, section 3.2.2).
MOVING = 20 / 132


@dataclass(frozen=True)
class Work:
    """What is to be trained.

    Args:
        config: the model's.
        tokens: in all.
        batch: texts of a step.
        length: tokens of a text.
        mtp: whether the MTP layer is trained too.
    """

    config: ModelConfig
    tokens: int
    batch: int
    length: int = 4096
    mtp: bool = True

    @property
    def layers(self) -> int:
        """Main layers and the MTP layer."""
        return self.config.num_hidden_layers + (self.config.num_nextn_predict_layers if self.mtp else 0)


def roofline(layout: Layout, machines: Machines) -> Roofline:
    """Return the device as a layout uses it: where all-to-all hides, part of it moves data."""
    moving = layout.overlaps and layout.ep > 1 and machines.device.units
    return Roofline(machines.device, layout.precision, 1 - MOVING if moving else 1.0)


def stages(work: Work, layout: Layout, roof: Roofline) -> tuple[list[LayerTimes], list[Weights]]:
    """Return what each stage takes and holds: layers cut so that the dearest stage is as cheap as can be."""
    config, kinds = work.config, {}
    rows: list[tuple[LayerTimes, Weights]] = []
    for layer in range(work.layers):
        kind = "mtp" if layer == config.num_hidden_layers else config.is_moe(layer)
        if kind not in kinds:
            kinds[kind] = (
                layer_times(config, layout, roof, layer, work.length),
                layer_weights(config, layout, layer),
            )
        rows.append(kinds[kind])
    vocabulary = vocabulary_weights(config, layout)
    heads = 1 + (work.layers - config.num_hidden_layers)
    rows.append((head_times(config, layout, roof, work.length, heads), vocabulary))
    cuts = balanced([_cost(times, layout) for times, _ in rows], layout.schedule, layout.pp)
    times, weights, first = [], [], 0
    for number in cuts:
        part = rows[first : first + number]
        times.append(_added([one for one, _ in part]))
        weights.append(_held_weights([one for _, one in part]))
        first += number
    if not config.tie_word_embeddings:
        weights[0] = weights[0] + vocabulary
    return times, weights


def stage_times(times: list[LayerTimes], layout: Layout, roof: Roofline, work: Work) -> StageTimes:
    """Return the seconds that the pipeline's simulation needs, with what of all-to-all is not hidden."""
    open_ = [one.exchange - (0.0 if layout.overlaps else one.hidden) for one in times]
    forward = [one.forward + more + one.reduce for one, more in zip(times, open_, strict=True)]
    back = [one.input + more + one.reduce for one, more in zip(times, open_, strict=True)]

    def pair(ahead: int, behind: int) -> float:
        a, b = times[ahead], times[behind]
        compute = a.forward + b.input + b.weight
        return max(compute, a.exchange + b.exchange) + a.reduce + b.reduce

    hop = layout.micro * work.length * work.config.hidden_size * 2.0 / layout.tp
    one_node = layout.pp * layout.tp <= roof.hardware.per_node
    hop_s = 0.0 if layout.pp == 1 else roof.link_s(hop) if one_node else roof.network_s(hop)
    return StageTimes(forward, back, [one.weight for one in times], pair if layout.overlaps else None, hop_s)


def _cost(times: LayerTimes, layout: Layout) -> float:
    compute, exchange = times.forward + times.input + times.weight, 2 * times.exchange
    return max(compute, exchange) if layout.overlaps else compute + exchange - 2 * times.hidden


def _added(parts: list[LayerTimes]) -> LayerTimes:
    total = LayerTimes()
    for one in parts:
        total = total + one
    return total


def _held_weights(parts: list[Weights]) -> Weights:
    return Weights(sum(one.shared for one in parts), sum(one.experts for one in parts))


def held(layout: Layout, device: int) -> tuple[int, ...]:
    """Return the stages that a device holds."""
    return held_stages(layout.schedule, layout.pp, device)


def fullest(
    work: Work, layout: Layout, machines: Machines, times: list[LayerTimes], weights: list[Weights], trace: Trace
) -> Memory:
    """Return what the fullest device of a pipeline needs."""
    found = []
    for device in range(layout.pp):
        mine = held(layout, device)
        mean = sum(times[stage].kept_bytes for stage in mine) / len(mine)
        own = _held_weights([weights[stage] for stage in mine])
        has_head = len(times) - 1 in mine
        room = machines.device.memory_bytes
        kept = trace.held[device] * mean
        found.append(device_memory(work.config, layout, own, kept, work.length, has_head, room))
    return max(found, key=lambda memory: memory.total)


def sync_s(own: list[Weights], layout: Layout, roof: Roofline, micro_batches: int, computing_s: float) -> float:
    """Return the seconds of summing gradients over replicas, in fp32, and of sending weights back, once a step.

    Where weights are shared too, they are gathered for each forward and backward pass; what of that takes longer than
    the computing that hides it is added.
    """
    if layout.dp == 1:
        return 0.0
    # Experts are there fewer times: once for every `ep` devices.
    copies = layout.dp * layout.tp / layout.ep if layout.ep > 1 else layout.dp
    shared, experts = sum(one.shared for one in own), sum(one.experts for one in own)
    size = (4 + 2) * (shared * (1 - 1 / layout.dp) + experts * (1 - 1 / copies))
    inside = layout.dp * layout.tp * layout.pp <= roof.hardware.per_node
    once = roof.link_s(size) if inside else roof.network_s(size)
    gathered = 2 * micro_batches * once * (2 / 6) if layout.zero == 3 else 0.0
    return once + max(gathered - computing_s, 0.0)


def update_s(own: list[Weights], layout: Layout, roof: Roofline) -> float:
    """Return the seconds of the optimiser's update: its state and gradients are read, and its state written."""
    numbers = sum(one.shared + one.experts for one in own)
    return roof.memory_s(numbers / (layout.dp if layout.zero else 1) * (2 * LOW_STATE_BYTES + 4))


def parts_s(
    times: list[LayerTimes],
    layout: Layout,
    trace: Trace,
    micro_batches: int,
    sync: float,
    update: float,
    lost: float,
) -> dict[str, float]:
    """Return where a step's seconds go on the busiest device."""
    busiest = max(range(layout.pp), key=lambda one: trace.busy_s[one])
    own = [times[stage] for stage in held(layout, busiest)]
    # In DualPipe a device meets half of the micro-batches in each of its stages.
    number = micro_batches / (2 if layout.schedule == "dualpipe" and layout.pp > 1 else 1)
    if layout.pp == 1:
        own = times
    forward = number * sum(one.forward for one in own)
    again = number * sum(one.again for one in own)
    backward = number * sum(one.input + one.weight for one in own) - again
    return {
        "forward": forward,
        "backward": backward,
        "recompute": again,
        "exposed communication": max(trace.busy_s[busiest] - forward - backward - again, 0.0),
        "bubble": trace.bubble_s,
        "gradients over replicas": sync,
        "optimiser": update,
        "all that is not modelled": lost,
    }
