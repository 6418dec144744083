"""Speed: a small model is timed; whatever the machine, all rates are there, and they are those that made the times."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from leanseek import speed
from leanseek.cost.rates import EngineRates, Rates
from leanseek.drawing import Drawing, drawing_seconds
from leanseek.model.config import load_preset
from tests.cost.measured import ENGINE, RATES


def test_every_rate_is_measured():
    rates = speed.measure_rates(repeats=1)
    assert isinstance(rates, Rates)
    for one in (rates, rates.engine, rates.alone):
        found = [getattr(one, field.name) for field in fields(one) if field.name.endswith("_per_s")]
        assert all(value > 0 for value in found if not isinstance(value, tuple))
    assert rates.train_flops_per_s > 1e8 and rates.watts > 0 and 1 <= rates.read_gain
    assert rates.reply_s > 0 and rates.document_tokens > 10


def took() -> dict[speed.Kind, float]:
    """Return the seconds that every kind of work takes an engine with known rates."""
    config, alone = load_preset("laptop"), replace(RATES, workers=1)
    return {
        kind: drawing_seconds(
            config, alone, Drawing(prompts, each, length, speed.reply_lengths(tokens), prompts * each, kept)
        )
        for kind in speed.KINDS
        for prompts, each, length, tokens, kept in [kind]
    }


def test_the_rates_are_found_that_made_the_times():
    found = speed.engine_rates(load_preset("laptop"), took())
    for field in fields(EngineRates):
        # Attention within 16 tokens is taken to be part of reading them, which makes it 5% too fast over 512.
        # Of endings is left what reading and decoding do not take, a tenth of the sum.
        within = 0.15 if field.name == "leave_s" else 0.06
        ours, theirs = (getattr(one, field.name) for one in (found, ENGINE))
        if field.name == "decode_flops_per_s":
            ours, theirs = dict(ours), dict(theirs)
        assert ours == pytest.approx(theirs, rel=within), field.name


@pytest.mark.parametrize("kind", speed.KINDS)
def test_a_disturbance_makes_no_rate_negative(kind):
    for factor in (0.2, 5):
        found = speed.engine_rates(load_preset("laptop"), took() | {kind: factor * took()[kind]})
        assert isinstance(found, EngineRates)
