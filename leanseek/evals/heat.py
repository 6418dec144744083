"""Heat: how much each expert was used along a stage, as a grid of cells that the page colours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# A grid with more rows than this shows each layer's busiest expert alone.
MOST_ROWS = 128
# Twice the mean load, and none at all, are the two ends of the colours.
END = 1.0


@dataclass(frozen=True)
class Heat:
    """The loads of a stage.

    Args:
        title: of the stage.
        steps: the last step of each column's stretch.
        labels: of the rows, from above.
        of: what a row is.
        cells: row by row, load over the mean of the layer; 1 is even.
        breaks: rows before which another layer begins.
    """

    title: str
    steps: tuple[int, ...]
    labels: tuple[str, ...]
    of: str
    cells: tuple[tuple[float, ...], ...]
    breaks: frozenset[int]

    def to_dict(self) -> dict[str, Any]:
        """Return what the page draws: each cell's place, class and strength in per cent."""
        drawn = []
        for row, loads in enumerate(self.cells):
            offset = sum(1 for at in self.breaks if at <= row)
            for column, load in enumerate(loads):
                strength = round(100 * min(abs(load - 1) / END, 1))
                if strength:  # what is even has the ground's colour
                    kind = "over" if load > 1 else "under"
                    drawn.append({"x": column, "y": row + offset, "kind": kind, "strength": strength})
        last = [loads[-1] for loads in self.cells]
        return {
            "title": self.title,
            "width": len(self.steps),
            "height": len(self.cells) + len(self.breaks),
            "cells": drawn,
            "steps": f"{self.steps[0]:,} to {self.steps[-1]:,}",
            "worst": f"{max(last):.2f} ({self.labels[last.index(max(last))]})",
            "rows": "the busiest expert of each layer"
            if len(self.breaks) == 0 and len(last) > 1
            else "one row an expert",
        }


def heat(rows: Iterable[Mapping[str, Any]], stage: str, title: str) -> Heat | None:
    """Return the loads that a stage has logged, or None where there are fewer than two stretches.

    Args:
        rows: of metrics.jsonl.
        stage: whose.
        title: what to call it.
    """
    found = [(row["step"], row["expert_load"]) for row in rows if row.get("stage") == stage and _is_load(row)]
    shapes = {tuple(map(len, loads)) for _, loads in found}
    if len(found) < 2 or len(shapes) != 1:
        return None
    (experts,) = shapes
    labels, cells, breaks = [], [], set()
    of = "the busiest expert of each layer" if sum(experts) > MOST_ROWS else "one row an expert"
    for layer, count in enumerate(experts):
        if sum(experts) > MOST_ROWS:
            labels.append(f"MoE layer {layer + 1}")
            cells.append(tuple(max(loads[layer]) for _, loads in found))
            continue
        if layer:
            breaks.add(len(cells))
        labels += [f"MoE layer {layer + 1}, expert {expert + 1}" for expert in range(count)]
        cells += [tuple(loads[layer][expert] for _, loads in found) for expert in range(count)]
    return Heat(title, tuple(step for step, _ in found), tuple(labels), of, tuple(cells), frozenset(breaks))


def _is_load(row: Mapping[str, Any]) -> bool:
    load = row.get("expert_load")
    return (
        isinstance(row.get("step"), int)
        and isinstance(load, list)
        and bool(load)
        and all(isinstance(one, list) and one for one in load)
    )
