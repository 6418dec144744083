"""Speed: a small model is timed; whatever the machine, all rates are there."""

from __future__ import annotations

from dataclasses import fields

from leanseek.cost.rates import Rates
from leanseek.speed import measure_rates


def test_every_rate_is_measured():
    rates = measure_rates(repeats=1)
    assert isinstance(rates, Rates)
    assert all(getattr(rates, field.name) > 0 for field in fields(rates) if field.name.endswith("_per_s"))
    assert rates.train_flops_per_s > 1e8 and rates.watts > 0
