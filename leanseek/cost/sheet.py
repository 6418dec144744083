"""Sheet: what pages of plans share: one self-contained file, its policy, bars, and drawings on logarithmic scales."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment as Templates
from jinja2 import FunctionLoader, StrictUndefined
from markupsafe import Markup

from leanseek.cost.carbon import Grid
from leanseek.cost.summary import Table
from leanseek.units import format_count, format_percent

COLOURS = 8
LEFT, RIGHT, TOP, BOTTOM = 60, 990, 10, 350


def sheet(kind: str, title: str, grid: Grid, tables: Sequence[Table], data: Mapping[str, Any], **values: Any) -> str:
    """Return a page; it asks nothing of the network, and its policy lets only its own script run.

    Args:
        kind: of plan: its template and its script are web/<kind>.html and .js.
        title: what was planned.
        grid: whose electricity it is.
        tables: the plan in words; the first has its facts.
        data: that the script computes from, beside the grid's grams.
        values: that the template shows.
    """
    templates = Templates(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_web),
    )
    templates.globals["bars"] = bars
    script = _web("figures.js") + _web(f"{kind}.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return templates.get_template(f"{kind}.html").render(
        title=title,
        grid=grid.name,
        facts=[row[:2] for row in tables[0].rows],
        allowed=Markup(f"'sha256-{digest}'"),
        style=Markup(_web("sheet.css")),
        script=Markup(script),
        # No text in it can end the element early.
        data=Markup(json.dumps({**data, "grams_per_kwh": grid.grams_per_kwh}, allow_nan=False).replace("<", "\\u003c")),
        **values,
    )


def bars(parts: Sequence[tuple[str, float, str]], room: tuple[float, str] | None = None) -> Markup:
    """Return a stacked bar of parts, a limit across it, and what each part is.

    Args:
        parts: name, size, and the size in words.
        room: the limit, and what it is; None: there is none.
    """
    whole = sum(size for _, size, _ in parts)
    scale = 1000 / max(whole, room[0] if room else 0.0, 1e-30)
    blocks, legend, x = [], [], 0.0
    for number, (name, size, said) in enumerate(parts):
        colour, share = number % COLOURS, format_percent(size / whole if whole else 0.0)
        text = Markup("{}: {} ({})").format(name, said, share)
        blocks.append(
            Markup('<rect class="f{}" x="{:.2f}" y="0" width="{:.2f}" height="34"><title>{}</title></rect>').format(
                colour, x, size * scale, text
            )
        )
        swatch = Markup('<svg viewBox="0 0 10 10"><rect class="f{}" width="10" height="10"></rect></svg>').format(
            colour
        )
        legend.append(Markup("<li>{}{}</li>").format(swatch, text))
        x += size * scale
    limit = Markup("")
    if room is not None:
        at = room[0] * scale
        line = '<line class="limit" x1="{0:.2f}" y1="0" x2="{0:.2f}" y2="40"></line><text x="{1:.2f}" y="54">{2}</text>'
        limit = Markup(line).format(at - 1, max(at - 170, 0), room[1])
    drawn = Markup("").join(blocks)
    height = 60 if room else 36
    return Markup('<svg class="bars" viewBox="0 0 1000 {}">{}{}</svg><ul class="legend">{}</ul>').format(
        height, drawn, limit, Markup("").join(legend)
    )


class Scales:
    """Two logarithmic axes.

    Args:
        x, y: least and largest values that are to be seen.
        said_x, said_y: how a power of ten is written beside an axis.
    """

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        said_x: Callable[[float], str] = lambda value: format_count(int(value)) if value >= 1 else f"{value:g}",
        said_y: Callable[[float], str] = lambda value: format_count(int(value)) if value >= 1 else f"{value:g}",
    ) -> None:
        self.x, self.y = x, y
        self.x_ticks = [(self.at(10.0**n, y[0])[0], said_x(10.0**n)) for n in _decades(*x)]
        self.y_ticks = [(self.at(x[0], 10.0**n)[1], said_y(10.0**n)) for n in _decades(*y)]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return where a point is drawn."""
        across = math.log(x / self.x[0]) / math.log(self.x[1] / self.x[0])
        up = math.log(y / self.y[0]) / math.log(self.y[1] / self.y[0])
        return round(LEFT + (RIGHT - LEFT) * across, 1), round(BOTTOM - (BOTTOM - TOP) * up, 1)

    def line(self, points: Iterable[tuple[float, float]]) -> str:
        """Return points as a polyline has them."""
        return " ".join("{},{}".format(*self.at(x, y)) for x, y in points)


def _decades(low: float, high: float) -> range:
    return range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)


def _web(name: str) -> str:
    return (resources.files("leanseek.cost") / "web" / name).read_text(encoding="utf-8")
