"""Units: what a person reads, at every size, and at the edges where rounding carries over."""

from __future__ import annotations

import pytest

from leanseek.errors import UsageError
from leanseek.units import (
    format_bytes,
    format_count,
    format_flops,
    format_joules,
    format_percent,
    format_seconds,
    format_usd,
    format_watt_hours,
    parse_count,
    parse_usd,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0003, "0.3 ms"),
        (0.32, "320 ms"),
        (0.9999, "1.0 s"),
        (45.23, "45.2 s"),
        (59.97, "1 min"),
        (723, "12 min 3 s"),
        (3599.7, "1 h"),
        (7500, "2 h 5 min"),
        (86_399, "1 d"),
        (3 * 86_400 + 4 * 3600, "3 d 4 h"),
        (-5, "-5.0 s"),
        (float("nan"), "?"),
    ],
)
def test_seconds(seconds, text):
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("show", "value", "text"),
    [
        (format_count, 512, "512"),
        (format_count, 1_312_000, "1.3M"),
        (format_count, 14.8e12, "14.8T"),
        (format_count, 671e9, "671B"),
        (format_count, 999_960, "1M"),
        (format_bytes, 0, "0 B"),
        (format_bytes, 1.3e9, "1.3 GB"),
        (format_bytes, 70_272, "70.3 kB"),
        (format_flops, 3.1e15, "3.1 PFLOP"),
        (format_joules, 7400, "7.4 kJ"),
        (format_joules, 0.5, "0.5 J"),
        (format_joules, -7400, "-7.4 kJ"),
        (format_joules, float("inf"), "? J"),
        (format_watt_hours, 7400, "2.1 Wh"),
        (format_watt_hours, 512, "0.14 Wh"),
        (format_watt_hours, 3.6e6, "1 kWh"),
        (format_percent, 0.6234, "62.3%"),
    ],
)
def test_scaled(show, value, text):
    assert show(value) == text


@pytest.mark.parametrize(
    ("usd", "text"),
    [
        (0, "$0"),
        (0.0000123, "less than $0.0001"),
        (0.0091, "$0.0091"),
        (0.0030, "$0.0030"),
        (0.00999, "$0.01"),
        (0.014, "$0.014"),
        (0.05, "$0.05"),
        (0.0999, "$0.10"),
        (1.354, "$1.35"),
        (999.999, "$1,000"),
        (5_576_000, "$5,576,000"),
        (-2, "-$2.00"),
    ],
)
def test_money(usd, text):
    assert format_usd(usd) == text


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("14.8T", 14_800_000_000_000),
        ("1.5e9", 1_500_000_000),
        ("40_000", 40_000),
        ("2 m", 2_000_000),
        ("7G", 7 * 10**9),
    ],
)
def test_counts_are_read(text, count):
    assert parse_count(text) == count


def test_what_is_shown_is_read_back():
    for count in (3, 640, 1500, 2_300_000, 671_000_000_000):
        assert parse_count(format_count(count)) == count


@pytest.mark.parametrize("text", ["", "many", "-3", "3X", "1.2.3", "k"])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(UsageError, match=r"14\.8T"):
        parse_count(text)


def test_money_is_read():
    assert [parse_usd(text) for text in ("$2", "0.05", "2 USD", "$1,000.50")] == [2, 0.05, 2, 1000.5]
    with pytest.raises(UsageError, match=r"\$2"):
        parse_usd("two")
