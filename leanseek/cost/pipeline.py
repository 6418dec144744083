"""Pipeline: when each device of a pipeline does what, simulated: 1F1B, interleaved or not, ZB1P, ZBV, DualPipe(V).

A backward pass has two parts: the gradient of the inputs, for which the stage before waits, and that of the weights,
for which nobody does. 1F1B (arXiv 1806.03377) does them together, with one stage a device or, interleaved, with several
chunks (arXiv 2104.04473); zero-bubble schedules (arXiv 2401.10241) put weight gradients where a device would wait. ZBV
folds the pipeline into a V of two chunks a device (arXiv 2405.15362). DualPipe (arXiv 2412.19437, section 3.2.1) feeds
micro-batches from both ends, and runs one's forward pass and another's backward pass as a pair whose communication
hides behind computation; DualPipeV is one half of it, folded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from leanseek.cost.orders import FORWARD, FULL, INPUT, PAIR, THERE, WEIGHT, Op, scheduled
from leanseek.cost.schedules import CHUNKS, fits
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
        return _run(schedule, devices, micro_batches, times, drawn=True)
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


def _run(schedule: str, devices: int, micro_batches: int, times: StageTimes, drawn: bool = False) -> Trace:
    if schedule == "zbv":
        return _zbv(devices, micro_batches, times, drawn)
    found, hop_s = scheduled(schedule, devices, micro_batches), times.hop_s
    takes = [times.of(op) for op in found.kinds]
    # When each result is where it is waited for.
    there: list[float | None] = [None] * found.places
    there[THERE] = 0.0
    clocks, busy = [0.0] * devices, [0.0] * devices
    spans: list[list[tuple[Op, float, float]]] = [[] for _ in range(devices)]
    done, left = [0] * devices, sum(map(len, found.turns))
    while left:
        before = left
        for device, turns in enumerate(found.turns):
            begin = done[device]
            clock, worked = clocks[device], busy[device]
            # Some hundred thousand times in a search, so it calls nothing.
            for number in range(begin, len(turns)):
                kind, one, other, given, also = turns[number]
                first, second = there[one], there[other]
                if first is None or second is None:
                    break
                start = clock
                if first > start:
                    start = first
                if second > start:
                    start = second
                clock = start + takes[kind]
                worked += clock - start
                there[given] = there[also] = clock + hop_s
                if drawn:
                    spans[device].append((found.orders[device][number], start, clock))
            else:
                number = len(turns)
            clocks[device], busy[device], done[device] = clock, worked, number
            left -= number - begin
        assert left < before, "the schedule waits for itself"
    return Trace(max(clocks), tuple(busy), found.held, tuple(map(tuple, spans)) if drawn else ())


def _zbv(devices: int, micro_batches: int, times: StageTimes, drawn: bool) -> Trace:
    """Run ZBV: every device does the most urgent thing that it can.

    What keeps the V moving comes first: input gradients of the first half and forward passes of the second, then the
    other two, then weights, unless there is no room left but by doing those. Activations are kept for no more
    micro-batches than 1F1B keeps on its first device. Where all passes take as long, only the way in is waited.
    """
    stages, hop_s, last = 2 * devices, times.hop_s, 2 * devices - 1
    # When each stage's passes were where they are waited for, one micro-batch after the other.
    forwards, inputs = ([list[float]() for _ in range(stages)] for _ in range(2))
    weights, clocks, busy = [0] * stages, [0.0] * devices, [0.0] * devices
    held, most = [0] * devices, [0] * devices
    spans: list[list[tuple[Op, float, float]]] = [[] for _ in range(devices)]

    def choose(device: int) -> tuple[float, int, int, str, int] | None:
        now, kept = clocks[device], held[device]
        at, rank, kind, of = math.inf, 0, "", 0
        for stage in (device, last - device):
            second = stage >= devices
            forward, back = len(forwards[stage]), len(inputs[stage])
            if back < forward and (stage == last or back < len(inputs[stage + 1])):
                start = now if stage == last else max(inputs[stage + 1][back], now)
                if start < at or (start == at and second < rank):
                    at, rank, kind, of = start, int(second), INPUT, stage
            # The last place is kept for the second half, whose backward pass is what frees places.
            if (
                forward < micro_batches
                and kept < stages - (not second)
                and forward - back < stages - stage
                and (stage == 0 or forward < len(forwards[stage - 1]))
            ):
                start = now if stage == 0 else max(forwards[stage - 1][forward], now)
                if start < at or (start == at and (not second) < rank):
                    at, rank, kind, of = start, int(not second), FORWARD, stage
            if weights[stage] < back:
                urgent = 2 if kept < last else -1
                if now < at or (now == at and urgent < rank):
                    at, rank, kind, of = now, urgent, WEIGHT, stage
        return (at, rank, device, kind, of) if kind else None

    takes = {kind: [times.of(Op(kind, stage, 0)) for stage in range(stages)] for kind in (FORWARD, INPUT, WEIGHT)}
    choices = [choose(device) for device in range(devices)]
    for _ in range(3 * stages * micro_batches):
        start, _rank, device, kind, stage = min(filter(None, choices))
        end = clocks[device] = start + takes[kind][stage]
        busy[device] += end - start
        if kind == WEIGHT:
            batch, other = weights[stage], stage
            weights[stage] += 1
            held[device] -= 1
        else:
            passes, other = (forwards, stage + 1) if kind == FORWARD else (inputs, stage - 1)
            batch = len(passes[stage])
            passes[stage].append(end + hop_s)
            if kind == FORWARD:
                held[device] += 1
                most[device] = max(most[device], held[device])
        if drawn:
            spans[device].append((Op(kind, stage, batch), start, end))
        choices[device] = choose(device)
        # Whoever waits for what was done may have something else to do now.
        if 0 <= other <= last and (waits := min(other, last - other)) != device:
            choices[waits] = choose(waits)
    return Trace(max(clocks), tuple(busy), tuple(most), tuple(map(tuple, spans)) if drawn else ())
