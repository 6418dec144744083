"""Turns: measures taken in turn, each between two pulses, so that it is known how fast the machine was meanwhile."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

Seconds = tuple[float, ...]


@dataclass
class _Measure:
    call: Callable[[], Seconds]
    together: bool
    found: list[tuple[float, Seconds]] = field(default_factory=list)  # the pulse meanwhile, and what it took
    spent_s: float = 0.0

    @property
    def had(self) -> tuple[bool, float]:
        """How much it had: a second timing, long measures first; then short ones are taken more often than they."""
        again = len(self.found) > 1
        return again, math.sqrt(self.spent_s * len(self.found)) if again else -self.spent_s


class Turns:
    """Takes measures in turn: each once, and then again for as long as there is time.

    What disturbs the machine for some seconds so disturbs one timing of a few kinds, not all timings of one. All are
    told as of a machine whose speed is the mean over the whole time.

    Args:
        pulse: seconds of a piece of work that is always the same, on each core.
        clock: seconds.
        limit_s: from now on, after which nothing is measured again.
        on_progress: called after each with the share of all that is done.
    """

    def __init__(
        self,
        pulse: Callable[[], Sequence[float]],
        clock: Callable[[], float],
        limit_s: float,
        on_progress: Callable[[float], None] = lambda share: None,
    ) -> None:
        self._pulse, self._clock, self._on_progress = pulse, clock, on_progress
        self._start, self._limit_s = clock(), limit_s
        self._measures: dict[Hashable, _Measure] = {}
        self._pulses = [pulse()]

    def pulse_s(self, together: bool = False) -> float:
        """Return the mean pulse; `together`: of the slower core, for which work on all of them waits."""
        return statistics.fmean(_of(pulse, together) for pulse in self._pulses)

    def add(self, name: Hashable, call: Callable[[], Seconds], together: bool = False) -> None:
        """Measure something for the first time.

        Args:
            name: by which `took` knows it.
            call: does it once and returns its seconds, as many as there are kinds of them.
            together: it is done on all cores, which wait for each other.
        """
        self._measures[name] = _Measure(call, together)
        self._measure(self._measures[name])

    def go_on(self) -> None:
        """Measure again while there is time."""
        while self._clock() - self._start < self._limit_s:
            self._measure(min(self._measures.values(), key=lambda one: one.had))
        self._on_progress(1.0)

    def took(self, name: Hashable) -> Seconds:
        """Return the seconds of a measure at the mean pulse: the middle one."""
        measure = self._measures[name]
        mean_s = self.pulse_s(measure.together)
        scaled = [[one * mean_s / pulse_s for one in seconds] for pulse_s, seconds in measure.found]
        return tuple(statistics.median(each) for each in zip(*scaled, strict=True))

    def _measure(self, measure: _Measure) -> None:
        start = self._clock()
        seconds = measure.call()
        now = self._clock()
        self._pulses.append(self._pulse())
        # Now and then a pulse is long without anything else being so: of the last three, the middle one.
        measure.found.append((statistics.median(_of(one, measure.together) for one in self._pulses[-3:]), seconds))
        measure.spent_s += now - start
        self._on_progress(min((now - self._start) / max(self._limit_s, 1e-9), 1.0))


def _of(pulse: Sequence[float], together: bool) -> float:
    return max(pulse) if together else statistics.fmean(pulse)
