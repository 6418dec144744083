"""smart_home: run a house for a day: devices with deadlines, warmth, a fuse, and a price that changes by the hour."""

from __future__ import annotations

import math
import random
from functools import lru_cache
from typing import Any

from leanseek.envs.environment import Problem
from leanseek.envs.worlds.skills import Argument, Call, Skill
from leanseek.envs.worlds.world import State, Step, World

HOURS = 24
# Devices: name -> kilowatts and the hours that it runs.
DEVICES = {"washer": (2, 2), "dryer": (3, 1), "car": (4, 3), "boiler": (3, 2), "oven": (2, 1)}
# The heater's kilowatts, how fast an hour of it warms the house, and what share of its warmth the house loses an hour.
HEATER_KW, WARMS, LOSES = 3, 4.0, 0.1
# Money over the expert's that a day may cost.
SLACK = 1.03
# Devices and whether the house must be warm, by level.
LEVELS = {1: (2, False), 2: (3, False), 3: (2, True), 4: (4, True)}
FUSE_KW = 7


class SmartHome(World):
    """The prompt has the prices of the 24 hours, what must be done by when, the fuse, and what the day may cost."""

    name = "smart_home"
    description = "run a house's devices and heating over a day as cheaply as its prices allow"
    levels = tuple(LEVELS)
    most_calls = 16
    intro = (
        "You plan a day of a house by calling skills; live ends it. price: of a kilowatt-hour in each of the 24 hours. "
        "Every device must run once, for its hours, between its two times. What runs at once must not exceed the fuse. "
        "Where it says warm, the house must have that temperature in those hours: it is at 15 at midnight, each hour "
        f"it loses {LOSES:.0%} of its difference to outside, and an hour of heating adds {WARMS:g}. The day must not "
        "cost more than the budget."
    )
    skills = (
        Skill(
            "start",
            "Let a device run from an hour on; devices have the numbers of the list.",
            (Argument("device", 1, 9, "its number"), Argument("hour", 0, 23, "when it starts")),
        ),
        Skill(
            "heat",
            "Heat from one hour to another.",
            (Argument("from", 0, 23, "first hour"), Argument("to", 1, 24, "hour at which it stops")),
        ),
        Skill("live", "Let the day pass; nothing can be changed afterwards."),
    )

    def propose(self, level: int, rng: random.Random) -> Problem:
        """Draw prices, devices with their times, and when somebody is at home."""
        count, warm = LEVELS[level]
        names = rng.sample(sorted(DEVICES), count)
        devices = []
        for name in names:
            after = rng.randint(0, 12)
            before = rng.randint(after + DEVICES[name][1] + 4, HOURS) if after < 15 else HOURS
            devices.append((name, after, min(before, HOURS)))
        base, swing, peak = rng.randint(15, 25), rng.randint(6, 12), rng.randint(0, 23)
        prices = tuple(
            max(1, round(base + swing * math.cos((hour - peak) * math.pi / 8) + rng.uniform(-3, 3)))
            for hour in range(HOURS)
        )
        data: dict[str, Any] = {"prices": prices, "devices": tuple(devices), "outside": rng.randint(-5, 8)}
        data["home"] = (rng.randint(14, 17), rng.randint(18, 22), rng.randint(17, 20)) if warm else None
        return Problem(self.name, level, "", data, _prompt(data))

    def finished(self, problem: Problem) -> Problem | None:
        """Set the budget, a little above the least that the day can cost."""
        data = dict(problem.data)
        found = _cheapest(data["prices"], data["devices"], data["outside"], data["home"])
        if found is None:
            return None
        data["budget"] = math.ceil(found[0] * SLACK)
        prompt = f"{_prompt(data)}\nbudget {data['budget']}"
        return Problem(self.name, problem.level, prompt, data, problem.key)

    def open(self, problem: Problem) -> State:
        """Return the house at midnight."""
        return Day(problem.data)

    def expert(self, problem: Problem) -> list[Step]:
        """Start every device when it is cheapest within its time and the fuse, and heat no longer than needed."""
        data = problem.data
        found = _cheapest(data["prices"], data["devices"], data["outside"], data["home"])
        assert found is not None, "problems are drawn so that it is there"
        _, starts, heating = found
        calls: list[Call] = [("start", (number, hour)) for number, hour in enumerate(starts, 1)]
        if heating is not None:
            calls.append(("heat", heating))
        return [Step(call) for call in [*calls, ("live", ())]]


class Day:
    """A day of the house, as it is planned and then lived.

    Args:
        data: of the problem.
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        self.starts: list[int | None] = [None] * len(data["devices"])
        self.heating: set[int] = set()
        self.won = self.over = False

    @property
    def progress(self) -> float:
        """All or nothing: a day is judged when it is over."""
        return float(self.won)

    def act(self, call: Call) -> str:
        """Carry a skill out and return what it comes to."""
        text: str = getattr(self, f"_{call[0]}")(*call[1])
        return text

    def _start(self, device: int, hour: int) -> str:
        if device > len(self.starts):
            return f"there is no device {device}"
        self.starts[device - 1] = hour
        return f"{self.data['devices'][device - 1][0]} from {hour}, cost {self.cost}"

    def _heat(self, first: int, last: int) -> str:
        self.heating = set(range(first, last))
        return f"heating {len(self.heating)} hours, cost {self.cost}"

    def _live(self) -> str:
        self.over = True
        fault = self._fault()
        self.won = fault is None
        return fault or f"all done, cost {self.cost}"

    @property
    def cost(self) -> int:
        """What the day costs as it is planned."""
        load = _load(self.data["devices"], self.starts, self.heating)
        return sum(int(price) * kw for price, kw in zip(self.data["prices"], load, strict=True))

    def _fault(self) -> str | None:
        for (name, after, before), start in zip(self.data["devices"], self.starts, strict=True):
            if start is None or start < after or start + DEVICES[name][1] > before:
                return f"the {name} was not done in time"
        for hour, kw in enumerate(_load(self.data["devices"], self.starts, self.heating)):
            if kw > FUSE_KW:
                return f"the fuse blew at {hour}"
        if self.data["home"] is not None:
            first, last, wanted = self.data["home"]
            warmth = _warmth(self.data["outside"], self.heating)
            if any(warmth[hour] < wanted for hour in range(first, last)):
                return "the house was cold"
        return None if self.cost <= self.data["budget"] else f"it cost {self.cost}"


def _load(devices: Any, starts: Any, heating: set[int]) -> list[int]:
    """Return the kilowatts of every hour; hours past midnight are nobody's."""
    load = [HEATER_KW * (hour in heating) for hour in range(HOURS)]
    for (name, _, _), start in zip(devices, starts, strict=True):
        if start is not None:
            power, hours = DEVICES[name]
            for hour in range(start, min(start + hours, HOURS)):
                load[hour] += power
    return load


def _warmth(outside: float, heating: set[int]) -> list[float]:
    """Return the temperature inside after every hour: warmth leaks out in proportion, heating adds to it."""
    inside, found = 15.0, []
    for hour in range(HOURS):
        inside += LOSES * (outside - inside) + (WARMS if hour in heating else 0.0)
        found.append(inside)
    return found


def _prompt(data: Any) -> str:
    lines = ["price " + " ".join(map(str, data["prices"]))]
    for number, (name, after, before) in enumerate(data["devices"], 1):
        power, hours = DEVICES[name]
        lines.append(f"{number} {name} {power} kW {hours} h from {after} to {before}")
    if data["home"] is not None:
        first, last, wanted = data["home"]
        lines.append(f"warm {wanted} from {first} to {last}, outside {data['outside']}, heater {HEATER_KW} kW")
    return "\n".join([*lines, f"fuse {FUSE_KW} kW"])


@lru_cache(maxsize=4096)
def _cheapest(
    prices: tuple[int, ...], devices: Any, outside: int, home: tuple[int, int, int] | None
) -> tuple[int, tuple[int, ...], tuple[int, int] | None] | None:
    """Return cost, starts and heating of the cheapest day; None where no day will do."""
    spans: list[tuple[int, int] | None] = [None]
    if home is not None:
        first, last, wanted = home
        spans = []
        for end in range(last - 2, last + 1):  # the shortest that is warm enough, for every end
            for begin in range(min(first, end), -1, -1):
                warmth = _warmth(outside, set(range(begin, end)))
                if all(warmth[hour] >= wanted for hour in range(first, last)):
                    spans.append((begin, end))
                    break
    best: tuple[int, tuple[int, ...], tuple[int, int] | None] | None = None
    for span in spans:
        load = [HEATER_KW * (span is not None and span[0] <= hour < span[1]) for hour in range(HOURS)]
        cost = sum(price * kw for price, kw in zip(prices, load, strict=True))
        found = _starts(prices, devices, load, cost, None if best is None else best[0])
        if found is not None:
            best = (*found, span)
    return best


def _starts(
    prices: tuple[int, ...], devices: Any, load: list[int], cost: int, bound: int | None
) -> tuple[int, tuple[int, ...]] | None:
    """Return the least cost below `bound` at which the devices can run beside a load, and when they start."""
    if not devices:
        return (cost, ()) if bound is None or cost < bound else None
    ways = [_options(prices, device) for device in devices]
    others = sum(way[0][0] for way in ways[1:])  # the least that the devices after this one can cost
    power, hours = DEVICES[devices[0][0]]
    best: tuple[int, tuple[int, ...]] | None = None
    for price, at in ways[0]:
        if bound is not None and cost + price + others >= bound:
            break
        if any(load[hour] + power > FUSE_KW for hour in range(at, at + hours)):
            continue
        taken = [kw + power * (at <= hour < at + hours) for hour, kw in enumerate(load)]
        found = _starts(prices, devices[1:], taken, cost + price, bound)
        if found is not None:
            best, bound = (found[0], (at, *found[1])), found[0]
    return best


@lru_cache(maxsize=4096)
def _options(prices: tuple[int, ...], device: tuple[str, int, int]) -> list[tuple[int, int]]:
    """Return what a device costs at every hour at which it may start, cheapest first."""
    name, after, before = device
    power, hours = DEVICES[name]
    return sorted((power * sum(prices[at : at + hours]), at) for at in range(after, before - hours + 1))
