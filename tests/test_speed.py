"""Speed: a small model is timed; whatever the machine, all rates are there."""

from __future__ import annotations

from dataclasses import fields

from leanseek import speed
from leanseek.cost.rates import Rates


def test_every_rate_is_measured():
    shares: list[float] = []
    rates = speed.measure_rates(0.0, on_progress=shares.append)
    assert isinstance(rates, Rates) and shares == sorted(shares) and shares[-1] == 1.0
    for one in (rates, rates.engine, rates.alone):
        found = [getattr(one, field.name) for field in fields(one) if field.name.endswith("_per_s")]
        assert all(value > 0 for value in found)
    for one in (rates.engine, rates.alone):
        assert [at.texts for at in one.decode] == [1, 8, 64, 256]
    assert rates.train_flops_per_s > 1e8 and rates.watts > 0 and 1 <= rates.read_gain
    assert rates.slower_pulse_s >= rates.pulse_s > 0 and rates.reply_s > 0 and rates.document_tokens > 10
