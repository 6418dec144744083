"""Grids have sources; grams are joules times the grid's figure."""

from __future__ import annotations

import re

import pytest

from leanseek.cost.carbon import format_grams, grids, parse_grid
from leanseek.errors import UsageError


@pytest.mark.parametrize("grid", grids().values(), ids=lambda grid: grid.name)
def test_every_grid_has_a_source_and_a_date(grid):
    assert 5 < grid.grams_per_kwh < 1200
    assert re.search(r"\b20[12][0-9]\b", grid.source)


def test_grams():
    assert parse_grid("France").grams(3.6e6) == grids()["france"].grams_per_kwh
    assert parse_grid("25.5").grams(3.6e6) == 25.5


@pytest.mark.parametrize("text", ["frence", "-1", "nan", ""])
def test_what_is_no_grid_is_told(text):
    with pytest.raises(UsageError, match="grams of CO2"):
        parse_grid(text)


def test_grams_in_words():
    assert [format_grams(value) for value in (0.254, 54, 1300, 5.4e8, 1e11)] == [
        "0.25 g",
        "54 g",
        "1.3 kg",
        "540 t",
        "100,000 t",
    ]
