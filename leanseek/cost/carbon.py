"""Carbon: grams of CO2 equivalent for joules, by a grid's intensity from grids.toml or one that the user gives."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from leanseek.errors import UsageError, nearest
from leanseek.units import JOULES_PER_WATT_HOUR


@dataclass(frozen=True)
class Grid:
    """An electricity grid, or a figure that the user gave.

    Args:
        name: of the row, or "given".
        grams_per_kwh: of CO2 equivalent, over the plants' life, for a kilowatt-hour that is consumed.
        source: where the figure is from, and when.
    """

    name: str
    grams_per_kwh: float
    source: str

    def grams(self, joules: float) -> float:
        """Return the CO2 equivalent of an amount of energy, in grams."""
        return joules / JOULES_PER_WATT_HOUR / 1000 * self.grams_per_kwh


@cache
def grids() -> Mapping[str, Grid]:
    """Return every row of grids.toml by name."""
    text = (resources.files("leanseek.cost") / "grids.toml").read_text(encoding="utf-8")
    return {name: Grid(name=name, **values) for name, values in tomllib.loads(text).items()}


def parse_grid(text: str) -> Grid:
    """Read a grid's name, or grams of CO2 equivalent for a kilowatt-hour: "france", "56".

    Raises:
        UsageError: neither a name of the table nor a number from 0.
    """
    table, name = grids(), text.strip().lower()
    if name in table:
        return table[name]
    try:
        grams = float(name)
    except ValueError:
        grams = math.nan
    if not (math.isfinite(grams) and grams >= 0):
        raise UsageError(
            f"grid {text!r} is not known{nearest(name, table)}; give grams of CO2 for a kilowatt-hour, or one of "
            f"{', '.join(table)}"
        )
    return Grid("given", grams, "given by the user")


def format_grams(grams: float) -> str:
    """Return an amount of CO2 equivalent as short text: "0.25 g", "1.3 kg", "540 t"."""
    if not math.isfinite(grams):
        return "?"
    for size, unit in ((1e6, "t"), (1e3, "kg")):
        if grams >= size:
            return f"{grams / size:,.3g} {unit}" if grams / size < 1000 else f"{grams / size:,.0f} {unit}"
    return f"{grams:.2g} g" if grams < 10 else f"{grams:.0f} g"
