"""What was measured is found again, where the user's settings are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from leanseek.cost.calibration import calibration_file, load_this, save_this
from leanseek.cost.hardware import hardware
from leanseek.errors import ConfigError


def test_what_was_measured_is_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    assert load_this() is None
    row = replace(hardware("virtual-cpu"), name="this", measured=True, fp32_flops=123.0)
    assert save_this(row) == tmp_path / "settings" / "leanseek" / "hardware.json" == calibration_file()
    assert load_this() == row


@pytest.mark.parametrize("given", [None, "", "not/absolute"])
def test_without_the_variable_it_is_in_the_home_folder(tmp_path, monkeypatch, given):
    monkeypatch.setenv("HOME", str(tmp_path))
    if given is None:
        monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    else:
        monkeypatch.setenv("XDG_CONFIG_HOME", given)
    assert calibration_file() == Path(tmp_path, ".config", "leanseek", "hardware.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"name": "this"}', '{"nonsense": 1}'])
def test_a_damaged_file_is_told(tmp_path, text):
    path = tmp_path / "hardware.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="--calibrate"):
        load_this(path)
