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
    trace = _Tracing(devices)
    ends: list[float] = []
    takes: dict[tuple[str, int, int], float] = {}
    hop_s = times.hop_s
    for device, op, local, received, keeps in sequence(schedule, devices, micro_batches):
        start = trace.clock[device]
        # Some hundred thousand times in a search: calls of `max` would be a tenth of it.
        for one in local:
            if ends[one] > start:
                start = ends[one]
        for one in received:
            if ends[one] + hop_s > start:
                start = ends[one] + hop_s
        kind = (op.kind, op.stage, op.back_stage)
        seconds = takes.get(kind)
        if seconds is None:
            seconds = takes[kind] = times.of(op)
        ends.append(start + seconds)
        trace.add(device, op, start, start + seconds, keeps)
    return trace.found()


class _Tracing:
    """What devices do, as it is found.

    Args:
        devices: of the pipeline.
    """

    def __init__(self, devices: int) -> None:
        self.clock = [0.0] * devices
        self._busy, self._held, self._most = [0.0] * devices, [0] * devices, [0] * devices
        self._spans: list[list[tuple[Op, float, float]]] = [[] for _ in range(devices)]

    def add(self, device: int, op: Op, start: float, end: float, keeps: int) -> None:
        """Let a device do its next operation."""
        self.clock[device] = end
        self._busy[device] += end - start
        self._spans[device].append((op, start, end))
        held = self._held[device] = self._held[device] + keeps
        if op.kind == PAIR:
            held += 1
        if held > self._most[device]:
            self._most[device] = held

    def found(self) -> Trace:
        """Return all of it."""
        return Trace(max(self.clock), tuple(self._busy), tuple(self._most), tuple(map(tuple, self._spans)))


def _zbv(devices: int, micro_batches: int, times: StageTimes) -> Trace:
    """Run ZBV: every device does the most urgent thing that it can.

    What keeps the V moving comes first: input gradients of the first half and forward passes of the second, then the
    other two, then weights, unless there is no room left but by doing those. Activations are kept for no more
    micro-batches than 1F1B keeps on its first device. Where all passes take as long, only the way in is waited.
    """
    stages, hop_s, trace = 2 * devices, times.hop_s, _Tracing(devices)
    mine = [held_stages("zbv", devices, device) for device in range(devices)]
    # When each stage ended its passes, one micro-batch after the other.
    forwards, inputs, weights = ([list[float]() for _ in range(stages)] for _ in range(3))

    def choose(device: int) -> tuple[float, int, int, str, int] | None:
        now = trace.clock[device]
        held = sum(len(forwards[stage]) - len(weights[stage]) for stage in mine[device])
        best: tuple[float, int, int, str, int] | None = None
        for stage in mine[device]:
            second = stage >= devices
            forward, back, weight = len(forwards[stage]), len(inputs[stage]), len(weights[stage])
            found: list[tuple[float, int, str]] = []
            if back < forward:
                if stage == stages - 1:
                    found.append((now, 1 if second else 0, INPUT))
                elif back < len(inputs[stage + 1]):
                    found.append((inputs[stage + 1][back] + hop_s, 1 if second else 0, INPUT))
            # The last place is kept for the second half, whose backward pass is what frees places.
            if forward < micro_batches and held < 2 * devices - (not second) and forward - back < stages - stage:
                if stage == 0:
                    found.append((now, 0 if second else 1, FORWARD))
                elif forward < len(forwards[stage - 1]):
                    found.append((forwards[stage - 1][forward] + hop_s, 0 if second else 1, FORWARD))
            if weight < back:
                found.append((now, 2 if held < 2 * devices - 1 else -1, WEIGHT))
            for ready, rank, kind in found:
                start = ready if ready > now else now
                if best is None or (start, rank) < best[:2]:
                    best = (start, rank, device, kind, stage)
        return best

    lists = {FORWARD: forwards, INPUT: inputs, WEIGHT: weights}
    choices = [choose(device) for device in range(devices)]
    for _ in range(3 * stages * micro_batches):
        start, _rank, device, kind, stage = min(one for one in choices if one is not None)
        ended = lists[kind][stage]
        op = Op(kind, stage, len(ended))
        end = start + times.of(op)
        ended.append(end)
        trace.add(device, op, start, end, op.keeps())
        for other in {max(device - 1, 0), device, min(device + 1, devices - 1)}:
            choices[other] = choose(other)
    return trace.found()
