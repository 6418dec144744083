from __future__ import annotations

import pytest

from leanseek.server.bill import Bill


class Meter:
    meter = "measured:fake"

    def __init__(self) -> None:
        self.joules, self.running = 0.0, False

    def start(self):
        self.running = True

    def read_joules(self):
        return self.joules

    def stop(self):
        self.running = False


def test_steps_are_divided_by_their_work():
    meter, now = Meter(), [0.0]
    bill = Bill(meter, 3600.0, clock=lambda: now[0])
    one, other = bill.open(), bill.open()
    assert (one.joules, one.usd, one.meter) == (0, 0, "measured:fake")
    for joules, seconds, weights in ((8.0, 2.0, (1, 3)), (4.0, 1.0, (1, 0))):
        meter.joules += 100  # idle before: nobody's
        now[0] += 50
        bill.begin()
        meter.joules += joules
        now[0] += seconds
        bill.divide({id(s): (s, float(w)) for s, w in zip((one, other), weights, strict=True) if w})
    assert (one.joules, other.joules) == (2 + 4, 6)
    assert (one.busy_s, other.busy_s) == (0.5 + 1, 1.5)
    assert one.usd == pytest.approx(1.5)
    assert (bill.joules, bill.busy_s) == (12, 3)
    bill.close()
    assert not meter.running


def test_without_meter_and_price_nothing_is_counted():
    bill = Bill()
    share = bill.open()
    bill.begin()
    bill.divide({1: (share, 1.0)})
    assert (share.joules, share.usd, share.meter) == (None, None, "")


def test_a_step_for_nobody():
    bill = Bill(Meter())
    bill.begin()
    bill.divide({})
