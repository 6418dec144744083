"""Picture: curves drawn as an SVG file, for pages that are read without a script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import floor, log10
from pathlib import Path

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 320, 60, 16, 40, 46
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#8250df")
Points = Sequence[tuple[float, float]]


def draw(path: Path, title: str, across: str, up: str, curves: Mapping[str, Sequence[Points]]) -> None:
    """Write a picture.

    Args:
        path: of the file.
        title: above it.
        across, up: what the axes are, with units.
        curves: by what they are; several of one kind, as of several seeds, have one colour.
    """
    points = [point for some in curves.values() for one in some for point in one]
    (x0, x1), (y0, y1) = ((min(values), max(values)) for values in zip(*points, strict=True))
    x0 = min(x0, 0.0)

    def at(x: float, y: float) -> tuple[float, float]:
        inner_w, inner_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return LEFT + inner_w * (x - x0) / (x1 - x0), TOP + inner_h * (1 - (y - y0) / (y1 - y0))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="20" font-size="14">{escape(title)}</text>',
    ]
    for value in _ticks(x0, x1):
        x, y = at(value, y0)
        parts.append(f'<path d="M{x:.1f} {TOP}V{y:.1f}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{value:g}</text>')
    for value in _ticks(y0, y1):
        x, y = at(x0, value)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e5e7eb"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(across)}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">{escape(up)}</text>')
    for number, ((name, some), colour) in enumerate(zip(curves.items(), COLOURS, strict=False)):
        for one in some:
            line = " ".join("{:.1f},{:.1f}".format(*at(x, y)) for x, y in one)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        x = WIDTH - RIGHT - 150
        parts.append(f'<path d="M{x} {TOP + 14 + 18 * number}h20" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{x + 26}" y="{TOP + 18 + 18 * number}">{escape(name)}</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def _ticks(low: float, high: float) -> list[float]:
    """Return some round values in a range."""
    step = 10 ** floor(log10((high - low) / 5))
    while (high - low) / step > 7:
        step *= 2 if f"{step:.0e}"[0] != "2" else 2.5
    first = -(-low // step)
    return [round((first + n) * step, 10) for n in range(int((high - first * step) / step + 1e-9) + 1)]
