"""LearningPlan: what reinforcement learning takes: rollouts with their long tail, training on them, and their split."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from leanseek.cost.layout import Layout
from leanseek.cost.machines import Machines
from leanseek.cost.nearest import nearest_fit
from leanseek.cost.search import search
from leanseek.cost.service import Service, decode_s, prefill_s
from leanseek.cost.step import Work
from leanseek.cost.training import SECONDS_PER_HOUR, plan_training
from leanseek.errors import UsageError
from leanseek.model.config import ModelConfig
from leanseek.units import JOULES_PER_WATT_HOUR, format_bytes

# Points at which the number of replies that are not done yet is looked at.
POINTS = 48
# A forward pass is a third of training's work: of the reference model, where there is a penalty for leaving it.
REFERENCE = 1 / 3
# Shares of the devices that sample, tried where sampling and training go on side by side.
SPLITS = tuple(n / 16 for n in range(1, 16))


@dataclass(frozen=True)
class Learning:
    """What is to be learnt.

    Args:
        config: the model's.
        steps: updates.
        outputs: replies of an update: problems times samples.
        updates: updates on replies that were sampled together (R1: 16).
        prompt: tokens of a problem.
        reply: tokens of a reply, on the average.
        longest: tokens at which a reply is cut off.
        reference: whether a reference model reads the replies too.
        decode_ep: devices that share experts while sampling.
        precision: of products.
        accepted: share of the MTP layer's drafts that are right while sampling; 0: it is not used.
    """

    config: ModelConfig
    steps: int
    outputs: int
    updates: int = 1
    prompt: int = 512
    reply: int = 4096
    longest: int = 32768
    reference: bool = True
    decode_ep: int = 32
    precision: str = "fp8"
    accepted: float = 0.0


@dataclass(frozen=True)
class LearningPlan:
    """What it takes.

    Args:
        learning, machines: what was asked.
        sample_s, train_s: seconds of one round of sampling and of training on it, each on the devices that do it.
        split: share of the devices that sample, the others training at the same time; None: all do both in turn.
        rounds: of sampling.
        layout: of training.
    """

    learning: Learning
    machines: Machines
    sample_s: float
    train_s: float
    split: float | None
    rounds: float
    layout: Layout

    @property
    def round_s(self) -> float:
        """Seconds from one round to the next."""
        return self.sample_s + self.train_s if self.split is None else max(self.sample_s, self.train_s)

    @property
    def hours(self) -> float:
        """Hours from start to end."""
        return self.rounds * self.round_s / SECONDS_PER_HOUR

    @property
    def device_hours(self) -> float:
        """Hours that are paid for."""
        return self.hours * self.machines.units

    @property
    def joules(self) -> float:
        """Energy at the devices' full power."""
        return self.machines.watts * self.hours * JOULES_PER_WATT_HOUR

    @property
    def usd(self) -> float | None:
        """Money; None where no price is known."""
        price = self.machines.usd_per_device_hour
        return None if price is None else price * self.hours * self.machines.count

    def as_dict(self) -> dict[str, Any]:
        """Return everything that `leanseek plan --rl --json` prints."""
        learning = {name: value for name, value in vars(self.learning).items() if name != "config"}
        return {
            "kind": "reinforcement learning",
            "machines": self.machines.asked,
            **learning,
            "rounds": self.rounds,
            "sample_s": self.sample_s,
            "train_s": self.train_s,
            "sampling_share_of_devices": self.split,
            "round_s": self.round_s,
            "training_layout": self.layout.text,
            "hours": self.hours,
            "device_hours": self.device_hours,
            "joules": self.joules,
            "usd": self.usd,
        }


def plan_learning(learning: Learning, machines: Machines, layout: Layout | None = None) -> LearningPlan:
    """Compute what reinforcement learning takes: in turn on all devices, or side by side where that is faster.

    Args:
        learning: what is to be learnt.
        machines: the devices.
        layout: of training; None: the best that is found.
    Raises:
        UsageError: a number makes no sense, or no layout of training fits.
    """
    return min(ways(learning, machines, layout), key=lambda one: one.round_s)


def ways(learning: Learning, machines: Machines, layout: Layout | None = None) -> list[LearningPlan]:
    """Return all ways to share the devices out: in turn on all of them, then by the share that samples, least first.

    Args, errors: as `plan_learning`.
    """
    if not 1 <= learning.reply < learning.longest:
        raise UsageError(
            f"reply = {learning.reply}, longest = {learning.longest}: the mean reply must be shorter than the longest"
        )
    if learning.steps < 1 or learning.outputs < 1 or learning.updates < 1:
        raise UsageError("steps, outputs and updates must be at least 1")
    length = learning.prompt + learning.reply
    tokens = learning.updates * learning.outputs * length
    # The longest texts decide what must fit; packed, they take as long as others of as many tokens.
    texts = max(tokens // length // machines.count, 1) * machines.count
    work = Work(learning.config, tokens, texts, length, mtp=False)
    plan = plan_training(work, machines, layout) if layout else search(work, machines, learning.precision)[0]
    if not plan.fits:
        nearest = nearest_fit(plan)
        said = "leave the layout out to have one searched" if nearest is None else f"{nearest.layout.text} fits"
        needed, room = plan.memory.total, machines.device.memory_bytes
        raise UsageError(
            f"training with {plan.layout.text} needs {format_bytes(needed)} of each {machines.device.title}, "
            f"{format_bytes(needed - room)} too many: {said}"
        )
    train_s = tokens / (plan.tokens_per_device_s * machines.count) * (1 + (REFERENCE if learning.reference else 0))
    rounds = learning.steps / learning.updates
    whole = LearningPlan(learning, machines, _sample_s(learning, machines, 1.0), train_s, None, rounds, plan.layout)
    if machines.count < 2:
        return [whole]
    return [
        whole,
        *(
            replace(whole, sample_s=_sample_s(learning, machines, share), train_s=train_s / (1 - share), split=share)
            for share in SPLITS
        ),
    ]


def alive(learning: Learning, position: float) -> float:
    """Return the share of replies that go on beyond a position: lengths fall off exponentially, and are cut off."""
    return math.exp(-position / _scale(learning)) if position < learning.longest else 0.0


def _scale(learning: Learning) -> float:
    """Return the exponential's scale, for which the mean of lengths that are cut off is as stated."""
    low, high = learning.reply / 2, learning.longest * 1e3
    for _ in range(80):
        middle = math.sqrt(low * high)
        if middle * (1 - math.exp(-learning.longest / middle)) < learning.reply:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def _sample_s(learning: Learning, machines: Machines, share: float) -> float:
    """Return the seconds of one round of sampling: every device decodes until the last of its replies is done."""
    devices = max(machines.count * share, 1.0)
    ep = max(min(learning.decode_ep, int(devices)), 1)
    service = Service(
        learning.config,
        prompt=learning.prompt,
        prefill_ep=ep,
        decode_ep=ep,
        precision=learning.precision,
        accepted=learning.accepted,
    )
    outputs = learning.updates * learning.outputs / devices
    total = outputs * learning.prompt * prefill_s(service, machines, learning.prompt)
    width = learning.longest / POINTS
    for point in range(POINTS):
        position = (point + 0.5) * width
        texts = max(outputs * alive(learning, position), 1 / devices)
        step = decode_s(service, machines, max(texts, 1.0), learning.prompt + position)
        total += width / (1 + learning.accepted) * step * min(texts * devices, 1.0)
    return total
