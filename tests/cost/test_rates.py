"""Rates: two timings make a fixed part and a rate; what was measured is found again; damage is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leanseek.cost.rates import fixed_and_rate, load_rates, rates_file, save_rates
from leanseek.errors import ConfigError
from tests.cost.measured import ENGINE, RATES


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


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"step_s": 1}', '{"engine": {}, "alone": {}}', '{"engine": 5}'])
def test_a_damaged_file_is_told(tmp_path, text):
    path = tmp_path / "rates.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="--calibrate"):
        load_rates(path)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "5", True, 0])
def test_a_rate_is_an_amount(value):
    with pytest.raises(ValueError, match="train_flops_per_s"):
        replace(RATES, train_flops_per_s=value)
    with pytest.raises(ValueError, match="attend_read_flops_per_s"):
        replace(ENGINE, attend_read_flops_per_s=value)
    with pytest.raises(ValueError, match="attend_flops_per_s"):
        replace(ENGINE.decode[0], attend_flops_per_s=value)


def test_decoding_has_rates():
    with pytest.raises(ValueError, match="decode"):
        replace(ENGINE, decode=())


@pytest.mark.parametrize("name", ["workers", "read_gain", "watts"])
def test_what_cannot_be_nothing(name):
    with pytest.raises(ValueError, match=name):
        replace(RATES, **{name: 0})
    replace(RATES, problem_s=0.0, layer_step_s=0.0), replace(ENGINE, keep_s=0.0)
