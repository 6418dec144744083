"""Rates: two timings make a fixed part and a rate; what was measured is found again; damage is told."""

from __future__ import annotations

import pytest

from leanseek.cost.rates import Rates, fixed_and_rate, load_rates, rates_file, save_rates
from leanseek.errors import ConfigError

RATES = Rates(0.02, 160e9, 0.0003, 50e9, 80e9, 15e3, 7.0)


def test_two_timings_make_a_line():
    fixed, rate = fixed_and_rate((10.0, 0.05 + 10 / 200), (40.0, 0.05 + 40 / 200))
    assert fixed == pytest.approx(0.05) and rate == pytest.approx(200)


@pytest.mark.parametrize("quick", [0.01, 0.5, 0.8])
def test_noise_makes_no_part_negative(quick):
    fixed, rate = fixed_and_rate((10.0, quick), (40.0, 0.5))
    assert fixed >= 0 and rate > 0


def test_what_was_measured_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert load_rates() is None
    assert save_rates(RATES) == rates_file() == tmp_path / "leanseek" / "rates.json"
    assert load_rates() == RATES


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"step_s": 1}'])
def test_a_damaged_file_is_told(tmp_path, text):
    path = tmp_path / "rates.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="--calibrate"):
        load_rates(path)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "5", True, 0])
def test_a_rate_is_an_amount(value):
    with pytest.raises(ValueError, match="train_flops_per_s"):
        Rates(0.02, value, 0.0003, 50e9, 80e9, 15e3, 7.0)
