"""Orders: what each device of a pipeline does, one operation after the other, where that is fixed beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from leanseek.cost.schedules import CHUNKS, stages_of

FORWARD, FULL, INPUT, WEIGHT, PAIR = "F", "B", "I", "W", "FB"


class Op(NamedTuple):
    """One operation of a device.

    Args:
        kind: a forward pass, a whole backward pass, either half of one, or a forward and a backward pass together.
        stage, batch: which stage, of which micro-batch. A micro-batch that comes from the other end has a negative
            number.
        back_stage, back_batch: of a pair: those of its backward pass.
    """

    kind: str
    stage: int
    batch: int
    back_stage: int = -1
    back_batch: int = 0


def one_f_one_b(devices: int, micro_batches: int) -> list[list[Op]]:
    """Return 1F1B's order: forward passes to fill the pipeline, then one forward and one backward in turn."""
    orders = []
    for device in range(devices):
        ahead = min(devices - device, micro_batches)
        order = [Op(FORWARD, device, batch) for batch in range(ahead)]
        for batch in range(micro_batches):
            order.append(Op(FULL, device, batch))
            if ahead + batch < micro_batches:
                order.append(Op(FORWARD, device, ahead + batch))
        orders.append(order)
    return orders


def interleaved(devices: int, micro_batches: int, chunks: int) -> list[list[Op]]:
    """Return interleaved 1F1B's order: each device has several chunks of layers, and takes turns among them.

    Source: Narayanan et al., Efficient Large-Scale Language Model Training (arXiv 2104.04473), section 2.2.
    """
    total = micro_batches * chunks

    def turn(number: int, device: int, back: bool) -> tuple[int, int]:
        # As many micro-batches as there are devices go through a chunk before its turn is over.
        chunk = number // devices % chunks
        batch = number // (devices * chunks) * devices + number % devices
        return (chunks - 1 - chunk if back else chunk) * devices + device, batch

    orders = []
    for device in range(devices):
        ahead = min(2 * (devices - device - 1) + (chunks - 1) * devices, total)
        order = [Op(FORWARD, *turn(number, device, False)) for number in range(ahead)]
        for number in range(total):
            if ahead + number < total:
                order.append(Op(FORWARD, *turn(ahead + number, device, False)))
            order.append(Op(FULL, *turn(number, device, True)))
        orders.append(order)
    return orders


def zb1p(devices: int, micro_batches: int) -> list[list[Op]]:
    """Return ZB1P's order (ZB-H1): 1F1B's, with weight gradients put off the longer the later the device.

    Source: Qi et al., Zero Bubble Pipeline Parallelism (arXiv 2401.10241), section 2.
    """
    orders = []
    for device in range(devices):
        ahead = min(devices - device, micro_batches)
        order = [Op(FORWARD, device, batch) for batch in range(ahead)]
        for batch in range(micro_batches):
            order.append(Op(INPUT, device, batch))
            if batch >= device:
                order.append(Op(WEIGHT, device, batch - device))
            if ahead + batch < micro_batches:
                order.append(Op(FORWARD, device, ahead + batch))
        order += [Op(WEIGHT, device, batch) for batch in range(max(micro_batches - device, 0), micro_batches)]
        orders.append(order)
    return orders


def dualpipe(devices: int, micro_batches: int) -> list[list[Op]]:
    """Return DualPipe's order; half of the micro-batches come from either end.

    Source: the eight phases of DeepSeek's DualPipe (github.com/deepseek-ai/DualPipe, dualpipe.py, MIT), told anew.
    """
    half = devices // 2
    orders = []
    for device in range(devices):
        near = min(device, devices - 1 - device)
        turned = device >= half

        def stage(way: int, device: int = device, turned: bool = turned) -> tuple[int, int]:
            # Way 0 is the direction that a device is nearer the start of.
            backwards = way ^ turned
            return (devices - 1 - device if backwards else device), -1 if backwards else 1

        orders.append(_phases(half, near, micro_batches // 2 - devices + near + 1, stage))
    return orders


def dualpipev(devices: int, micro_batches: int) -> list[list[Op]]:
    """Return DualPipeV's order: DualPipe's, with one direction folded onto the second half of the stages.

    Source: DeepSeek's DualPipe (github.com/deepseek-ai/DualPipe, dualpipev.py, MIT), told anew.
    """
    orders = []
    for device in range(devices):

        def stage(way: int, device: int = device) -> tuple[int, int]:
            return (2 * devices - 1 - device if way else device), 1

        orders.append(_phases(devices, device, micro_batches - 2 * devices + device + 1, stage))
    return orders


# Way of a micro-batch -> (stage, sign of its number).
Stage = Callable[[int], tuple[int, int]]


class _Device:
    """One device's operations, as they are put in order."""

    def __init__(self, stage: Stage) -> None:
        self.order: list[Op] = []
        self._stage = stage
        self._forwards, self._backwards = [0, 0], [0, 0]
        self._waiting: list[tuple[int, int]] = []  # weight gradients that are put off

    def _next(self, way: int, counts: list[int]) -> tuple[int, int]:
        stage, sign = self._stage(way)
        counts[way] += 1
        return stage, sign * counts[way]

    def forward(self, way: int) -> None:
        self.order.append(Op(FORWARD, *self._next(way, self._forwards)))

    def backward(self, way: int, split: bool = False) -> None:
        stage, batch = self._next(way, self._backwards)
        self.order.append(Op(INPUT if split else FULL, stage, batch))
        if split:
            self._waiting.append((stage, batch))

    def weight(self) -> None:
        self.order.append(Op(WEIGHT, *self._waiting.pop(0)))

    def pair(self, forward: int, backward: int) -> None:
        self.order.append(Op(PAIR, *self._next(forward, self._forwards), *self._next(backward, self._backwards)))


def _phases(half: int, near: int, steady: int, stage: Stage) -> list[Op]:
    """Return one device's order.

    Args:
        half: devices from the pipeline's end to its middle (its fold).
        near: how many devices lie between this one and its end.
        steady: rounds of the steady part.
        stage: way -> (stage, sign of its micro-batches' numbers).
    """
    device, far = _Device(stage), half - near - 1
    for _ in range(2 * far):
        device.forward(0)
    for _ in range(near + 1):
        device.forward(0)
        device.forward(1)
    for _ in range(far):
        device.backward(1, split=True)
        device.weight()
        device.forward(1)
    for turn in range(steady):
        if turn == 0 and far == 0:
            # In the middle the first pair would wait for itself.
            device.forward(0)
            device.backward(1)
        else:
            device.pair(0, 1)
        device.pair(1, 0)
    for _ in range(far):
        device.backward(1)
        device.pair(1, 0)
    last, split = near + 1, False
    for turn in range(last):
        if turn == last // 2 and near % 2 == 1:
            split = True
        device.backward(1, split)
        if turn == last // 2 and near % 2 == 0:
            split = True
        device.backward(0, split)
    for _ in range(far):
        device.weight()
        device.backward(0, split=True)
    for _ in range(near + 1):
        device.weight()
    return device.order


# What a device does in its turn: number of its kind among the schedule's; places of both results that it waits for, and
# of both that it gives.
Turn = tuple[int, int, int, int, int]
# Places of results: one that is there from the start, and one that nobody waits for.
THERE, UNASKED = 0, 1


@dataclass(frozen=True)
class Schedule:
    """A schedule as a simulation goes through it, whatever its operations take.

    Args:
        orders: of each device.
        turns: the same with numbers in place of names.
        kinds: operations of which all others are repetitions, for other micro-batches.
        places: of results.
        held: for each device, the most micro-batch stages whose activations it keeps at once.
    """

    orders: list[list[Op]]
    turns: list[list[Turn]]
    kinds: list[Op]
    places: int
    held: tuple[int, ...]


@cache
def scheduled(schedule: str, devices: int, micro_batches: int) -> Schedule:
    """Return what each device does, one operation after the other, and what each of them waits for."""
    stages = stages_of(schedule, devices)
    if schedule in CHUNKS:
        orders = interleaved(devices, micro_batches, CHUNKS[schedule])
    else:
        make = {"1f1b": one_f_one_b, "zb1p": zb1p, "dualpipe": dualpipe, "dualpipev": dualpipev}[schedule]
        orders = make(devices, micro_batches)
    # Places of a stage's forward passes and of its input gradients lie beside each other. Negative numbers of
    # micro-batches come from the end.
    span, last = micro_batches + 1, stages - 1
    kinds: dict[tuple[str, int, int], int] = {}
    examples: list[Op] = []
    turns: list[list[Turn]] = []
    most: list[int] = []
    for order in orders:
        mine: list[Turn] = []
        held = peak = 0
        for op in order:
            kind, stage, batch, back_stage, back_batch = op
            number = kinds.get((kind, stage, back_stage))
            if number is None:
                number = kinds[kind, stage, back_stage] = len(examples)
                examples.append(op)
            here = 2 + 2 * (stage * span + batch % span)
            if kind == FORWARD:
                held += 1
                mine.append((number, here - 2 * span if stage else THERE, THERE, here, UNASKED))
            elif kind == WEIGHT:
                held -= 1
                mine.append((number, THERE, THERE, UNASKED, UNASKED))
            elif kind == PAIR:
                back = 3 + 2 * (back_stage * span + back_batch % span)
                ahead, behind = here - 2 * span if stage else THERE, back + 2 * span if back_stage < last else THERE
                mine.append((number, ahead, behind, here, back))
                peak = max(peak, held + 1)
            else:
                held -= kind == FULL
                mine.append((number, here + 1 + 2 * span if stage < last else THERE, THERE, here + 1, UNASKED))
            if held > peak:
                peak = held
        turns.append(mine)
        most.append(peak)
    return Schedule(orders, turns, examples, 2 + 2 * stages * span, tuple(most))
