"""Bill: what each request's share of the machine's work costs, in joules and money."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


class Meter(Protocol):
    """Counts joules; `cost.energy.EnergyMeter` is one."""

    @property
    def meter(self) -> str:
        """How the joules are got."""

    def start(self) -> None:
        """Begin to count from nought."""

    def read_joules(self) -> float:
        """Return the joules since `start`."""

    def stop(self) -> None:
        """Stop counting."""


@dataclass
class Share:
    """What one request has taken so far.

    Args:
        busy_s: its share of the seconds that the engine worked.
        joules: its share of the energy of that time; None: not counted.
        usd: its share of the machine's price; None: there is none.
        meter: how the joules were got.
    """

    busy_s: float = 0.0
    joules: float | None = None
    usd: float | None = None
    meter: str = ""


class Bill:
    """Divides each step of the engine among those that it worked for. What the machine draws idle is nobody's.

    Args:
        meter: of this machine; None: joules are not counted.
        usd_per_hour: what the machine costs; None: money is not counted.
        clock: seconds.
    """

    def __init__(
        self,
        meter: Meter | None = None,
        usd_per_hour: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.joules = self.busy_s = 0.0  # of all steps
        self.label = meter.meter if meter is not None else ""
        self._meter, self._usd_per_s, self._clock = meter, None if usd_per_hour is None else usd_per_hour / 3600, clock
        self._began_s = self._began_j = 0.0
        if meter is not None:
            meter.start()

    def open(self) -> Share:
        """Return the share of a request that has taken nothing yet."""
        joules = None if self._meter is None else 0.0
        return Share(0.0, joules, None if self._usd_per_s is None else 0.0, self.label)

    def begin(self) -> None:
        """Say that a step begins."""
        self._began_s = self._clock()
        if self._meter is not None:
            self._began_j = self._meter.read_joules()

    def divide(self, weights: Mapping[int, tuple[Share, float]]) -> None:
        """Say that the step is over, and whom it was for.

        Args:
            weights: any key -> a share, and its part of the work in any unit.
        """
        seconds = self._clock() - self._began_s
        joules = self._meter.read_joules() - self._began_j if self._meter is not None else 0.0
        self.busy_s += seconds
        self.joules += joules
        total = sum(weight for _, weight in weights.values())
        for share, weight in weights.values():
            part = weight / total
            share.busy_s += part * seconds
            if share.joules is not None:
                share.joules += part * joules
            if share.usd is not None and self._usd_per_s is not None:
                share.usd += part * seconds * self._usd_per_s

    def close(self) -> None:
        """Stop counting."""
        if self._meter is not None:
            self._meter.stop()
