"""Pipeline: when each device of a pipeline does what, simulated: 1F1B, interleaved or not, ZB1P, ZBV, DualPipe(V).

A backward pass has two parts: the gradient of the inputs, for which the stage before waits, and that of the weights,
for which nobody does. 1F1B (arXiv 1806.03377) does them together, with one stage a device or, interleaved, with several
chunks (arXiv 2104.04473); zero-bubble schedules (arXiv 2401.10241) put weight gradients where a device would wait. ZBV
folds the pipeline into a V of two chunks a device (arXiv 2405.15362). DualPipe (arXiv 2412.19437, section 3.2.1) feeds
micro-batches from both ends, and runs one's forward pass and another's backward pass as a pair whose communication
hides behind computation; DualPipeV is one half of it, folded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from leanseek.cost.orders import FORWARD, FULL, INPUT, PAIR, WEIGHT, Op, sequence
from leanseek.cost.schedules import CHUNKS, fits, held_stages
from leanseek.errors import UsageError

# Micro-batches beyond so many for each stage only repeat the steady part, and are not simulated one by one.
SIMULATED = 3


@dataclass(frozen=True)
class StageTimes:
    """Seconds of one micro-batch in each stage.

    Args:
        forward: of the forward pass, communication included.
        input: of the gradient of the inputs, likewise.
        weight: of the gradient of the weights.
        pair: seconds of one stage's forward and another's whole backward pass, done together; None: their sum.
        hop_s: from one stage to the next.
    """

    forward: Sequence[float]
    input: Sequence[float]
    weight: Sequence[float]
    pair: Callable[[int, int], float] | None = None
    hop_s: float = 0.0

    def of(self, op: Op) -> float:
        """Return the seconds of an operation."""
        if op.kind == PAIR:
            if self.pair is not None:
                return self.pair(op.stage, op.back_stage)
            return self.forward[op.stage] + self.input[op.back_stage] + self.weight[op.back_stage]
        if op.kind == FULL:
            return self.input[op.stage] + self.weight[op.stage]
        return {FORWARD: self.forward, INPUT: self.input, WEIGHT: self.weight}[op.kind][op.stage]


@dataclass(frozen=True)
class Trace:
    """What a simulation found.

    Args:
        seconds: from the first operation's start to the last one's end.
        busy_s: of each device.
        held: for each device, the most micro-batch stages whose activations it kept at once.
        spans: for each device, (operation, start, end); empty where the steady part was not simulated one by one.
    """

    seconds: float
    busy_s: tuple[float, ...]
    held: tuple[int, ...]
    spans: tuple[tuple[tuple[Op, float, float], ...], ...] = ()

    @property
    def bubble_s(self) -> float:
        """Seconds that the busiest device waits."""
        return self.seconds - max(self.busy_s)

    @property
    def bubble_share(self) -> float:
        """Share of all devices' time that is waited."""
        return 1 - sum(self.busy_s) / (len(self.busy_s) * self.seconds)


def simulate(schedule: str, devices: int, micro_batches: int, times: StageTimes) -> Trace:
    """Run a schedule and see when it ends.

    Args:
        schedule: one of SCHEDULES.
        devices: of the pipeline.
        micro_batches: of one step, for one pipeline; in DualPipe, from both ends together.
        times: for each of the `stages_of` stages.
    Raises:
        UsageError: the schedule does not exist, or cannot run so.
    """
    obstacle = fits(schedule, devices, micro_batches)
    if obstacle is not None:
        raise UsageError(f"{obstacle}; there are {devices} devices and {micro_batches} micro-batches")
    if devices == 1:
        # Nobody waits for anybody.
        total = micro_batches * (sum(times.forward) + sum(times.input) + sum(times.weight))
        return Trace(total, (total,), (len(times.forward),))
    enough = SIMULATED * devices
    # ZBV's steady part is not the same for each micro-batch, so it is looked at for longer, and sooner.
    more = devices if schedule in ("zbv", *CHUNKS) else 2
    if schedule == "zbv":
        enough = 2 * devices
    if micro_batches <= enough + more:
        return _run(schedule, devices, micro_batches, times)
    # More micro-batches make the steady part longer by the same time again and again.
    enough += (micro_batches - enough) % 2
    short, long = _run(schedule, devices, enough, times), _run(schedule, devices, enough + more, times)
    rest = (micro_batches - enough) / more
    busy = tuple(a + rest * (b - a) for a, b in zip(short.busy_s, long.busy_s, strict=True))
    return Trace(short.seconds + rest * (long.seconds - short.seconds), busy, short.held)


def bubble_formula(schedule: str, devices: int, forward: float, backward: float, weight: float, pair: float) -> float:
    """Return the bubble as the papers state it, for stages that all take as long.

    Args:
        schedule: any but "zbv".
        devices: of the pipeline.
        forward: seconds of a forward pass; of a chunk, where devices hold chunks.
        backward: of a whole backward pass.
        weight: of its part for the weights.
        pair: of a forward and a backward pass that overlap.
    Source: README of DeepSeek's DualPipe; DeepSeek-V3 report (arXiv 2412.19437) table 2.
    """
    if schedule == "1f1b" or schedule in CHUNKS:
        return (devices - 1) * (forward + backward)
    if schedule == "zb1p":
        return (devices - 1) * (forward + backward - 2 * weight)
    half = devices if schedule == "dualpipev" else devices / 2
    return (half - 1) * (pair + backward - 3 * weight)


def _run(schedule: str, devices: int, micro_batches: int, times: StageTimes) -> Trace:
    if schedule == "zbv":
        return _zbv(devices, micro_batches, times)
    spans: list[list[tuple[Op, float, float]]] = [[] for _ in range(devices)]
    clock = [0.0] * devices
    ends: list[float] = []
    for device, op, local, received in sequence(schedule, devices, micro_batches):
        start = clock[device]
        # A few hundred thousand times in a search: calls of `max` would be a tenth of it.
        for one in local:
            if ends[one] > start:
                start = ends[one]
        for one in received:
            if ends[one] + times.hop_s > start:
                start = ends[one] + times.hop_s
        clock[device] = end = start + times.of(op)
        ends.append(end)
        spans[device].append((op, start, end))
    return _trace(spans)


def _ready(op: Op, done: dict[tuple[str, int, int], float], stages: int, hop_s: float) -> float | None:
    """Return when what an operation waits for is there; None: that is not known yet."""
    latest = 0.0
    for key in op.after():
        when = done.get(key)
        if when is None:
            return None
        latest = max(latest, when)
    for key in op.received(stages):
        when = done.get(key)
        if when is None:
            return None
        latest = max(latest, when + hop_s)
    return latest


def _zbv(devices: int, micro_batches: int, times: StageTimes) -> Trace:
    """Run ZBV: every device does the most urgent thing that it can.

    What keeps the V moving comes first: input gradients of the first half and forward passes of the second, then the
    other two, then weights, unless there is no room left but by doing those. Activations are kept for no more
    micro-batches than 1F1B keeps on its first device. Where all passes take as long, only the way in is waited.
    """
    stages = 2 * devices
    done: dict[tuple[str, int, int], float] = {}
    clock = [0.0] * devices
    spans: list[list[tuple[Op, float, float]]] = [[] for _ in range(devices)]
    counts = {kind: [0] * stages for kind in (FORWARD, INPUT, WEIGHT)}

    def choose(device: int) -> tuple[float, int, int, Op] | None:
        mine = held_stages("zbv", devices, device)
        held = sum(counts[FORWARD][s] - counts[WEIGHT][s] for s in mine)
        best: tuple[float, int, int, Op] | None = None
        for stage in mine:
            second = stage >= devices
            forward, back, weight = (counts[kind][stage] for kind in (FORWARD, INPUT, WEIGHT))
            found = [(Op(INPUT, stage, back), 1 if second else 0)] if back < forward else []
            # The last place is kept for the second half, whose backward pass is what frees places.
            room = held < 2 * devices - (not second) and forward - back < stages - stage
            if forward < micro_batches and room:
                found.append((Op(FORWARD, stage, forward), 0 if second else 1))
            if weight < back:
                found.append((Op(WEIGHT, stage, weight), 2 if held < 2 * devices - 1 else -1))
            for op, rank in found:
                ready = _ready(op, done, stages, times.hop_s)
                if ready is not None and (best is None or (max(clock[device], ready), rank) < best[:2]):
                    best = (max(clock[device], ready), rank, device, op)
        return best

    choices = [choose(device) for device in range(devices)]
    for _ in range(3 * stages * micro_batches):
        start, _rank, device, op = min(one for one in choices if one is not None)
        end = start + times.of(op)
        for key in op.gives():
            done[key] = end
        spans[device].append((op, start, end))
        clock[device] = end
        counts[op.kind][op.stage] += 1
        for other in {max(device - 1, 0), device, min(device + 1, devices - 1)}:
            choices[other] = choose(other)
    return _trace(spans)


def _trace(spans: list[list[tuple[Op, float, float]]]) -> Trace:
    busy = tuple(sum(end - start for _, start, end in one) for one in spans)
    held = []
    for one in spans:
        now = most = 0
        for op, _, _ in one:
            now += op.keeps()
            most = max(most, now + (op.kind == PAIR))
        held.append(most)
    return Trace(max(one[-1][2] for one in spans), busy, tuple(held), tuple(tuple(one) for one in spans))
