"""Turns: measures are taken in turn, short ones more often, and all are told at one speed of the machine."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from leanseek.turns import Turns


class Machine:
    """A clock, and work that takes so many seconds at a pulse of one.

    Args:
        pulses: of both cores, one pair after another; the last one stays.
    """

    def __init__(self, *pulses: tuple[float, float]) -> None:
        self.now, self.pulses, self.done = 0.0, list(pulses), list[str]()

    def clock(self) -> float:
        return self.now

    def pulse(self) -> Sequence[float]:
        return self.pulses.pop(0) if len(self.pulses) > 1 else self.pulses[0]

    def work(self, name: str, seconds: float) -> tuple[float, float]:
        self.done.append(name)
        self.now += seconds
        return seconds, 10 * seconds


def test_every_measure_is_taken_once_however_little_time_there_is():
    machine, shares = Machine((1.0, 1.0)), list[float]()
    turns = Turns(machine.pulse, machine.clock, 0.0, shares.append)
    for name in "abc":
        turns.add(name, lambda name=name: machine.work(name, 2.0))  # type: ignore[misc]
    turns.go_on()
    assert machine.done == list("abc") and turns.took("b") == (2.0, 20.0) and shares[-1] == 1.0


def test_short_measures_are_taken_more_often_while_there_is_time():
    machine, shares = Machine((1.0, 1.0)), list[float]()
    turns = Turns(machine.pulse, machine.clock, 200.0, shares.append)
    turns.add("long", lambda: machine.work("long", 9.0))
    turns.add("short", lambda: machine.work("short", 1.0))
    turns.go_on()
    assert 200 <= machine.now < 209 and shares == sorted(shares) and shares[-1] == 1.0
    # Both twice, the long one first; then three times as often where it is nine times as short.
    assert machine.done[:4] == ["long", "short", "long", "short"]
    assert machine.done.count("short") == pytest.approx(3 * machine.done.count("long"), abs=3)


def test_what_took_longer_on_a_slower_machine_counts_as_much():
    slow, calm = (2.0, 2.0), (1.0, 1.0)
    machine = Machine(calm, calm, calm, slow, slow, slow)
    turns = Turns(machine.pulse, machine.clock, 0.0)
    for name in ("first", "calm", "between", "slow"):
        seconds = 6.0 if name == "slow" else 3.0
        turns.add(name, lambda name=name, seconds=seconds: machine.work(name, seconds))  # type: ignore[misc]
    assert turns.pulse_s() == pytest.approx(7 / 5)
    for name in ("first", "calm", "between", "slow"):
        assert turns.took(name) == pytest.approx((4.2, 42.0)), name


def test_work_on_all_cores_waits_for_the_slower_one():
    machine = Machine((1.0, 1.0), (1.0, 1.0), (1.0, 2.0))
    turns = Turns(machine.pulse, machine.clock, 0.0)
    for name, together in (("calm", True), ("first", False), ("alone", False), ("together", True)):
        turns.add(name, lambda name=name: machine.work(name, 3.0), together)  # type: ignore[misc]
    assert turns.pulse_s() == pytest.approx(6.5 / 5) and turns.pulse_s(together=True) == pytest.approx(8 / 5)
    assert turns.took("calm") == pytest.approx((4.8, 48.0)) and turns.took("together") == pytest.approx((2.4, 24.0))
    assert turns.took("first") == pytest.approx((3.9, 39.0)) and turns.took("alone") == pytest.approx((2.6, 26.0))


def test_one_disturbed_timing_does_not_count():
    machine, seconds = Machine((1.0, 1.0)), [2.0, 9.0, 2.1]
    turns = Turns(machine.pulse, machine.clock, 12.0)
    turns.add("a", lambda: machine.work("a", seconds.pop(0)))
    turns.go_on()
    assert not seconds and turns.took("a") == (2.1, 21.0)
