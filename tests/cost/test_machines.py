"""Machines and prices are read; what cannot be is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leanseek.cost.hardware import hardware
from leanseek.cost.machines import parse_machines, parse_price
from leanseek.errors import UsageError


@pytest.mark.parametrize("text", ["2048xh800", " 2,048 X H800 ", "2_048*h800"])
def test_machines_are_read(text):
    found = parse_machines(text)
    assert (found.count, found.device.name, found.usd_per_device_hour) == (2048, "h800", 2.0)
    assert found.watts == 2048 * 700 and found.units == 2048
    assert parse_machines("h100").count == 1


def test_cores_are_one_device_together():
    row, found = hardware("epyc-9654"), parse_machines("96xepyc-9654", "$0.01/h")
    assert found.count == 1 and found.units == 96 and found.usd_per_device_hour == pytest.approx(0.96)
    assert found.device.memory_bytes_per_s == pytest.approx(460.8e9, rel=0.01)
    assert found.device.watts == 96 * row.watts


def test_this_machine_must_have_been_measured():
    with pytest.raises(UsageError, match="--calibrate"):
        parse_machines("this")
    assert parse_machines("this", this=replace(hardware("h100"), name="this")).device.name == "this"


@pytest.mark.parametrize("text", ["$2/h", "2", "2 USD/hour", "$2 per hour", " 2.00 / gpu-hour"])
def test_prices_are_read(text):
    assert parse_price(text) == 2.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2048", "write it as 2048xh800"),
        ("0xh800", "at least one"),
        ("8xh8000", "did you mean h800"),
        ("8xtpu", "have virtual-cpu"),
        ("-1xh800", "write it as"),
    ],
)
def test_what_is_no_machine_is_told(text, said):
    with pytest.raises(UsageError, match=said):
        parse_machines(text)


def test_what_is_no_price_is_told():
    with pytest.raises(UsageError, match=r"\$2/h"):
        parse_price("two a day")
