"""Comparison: several run folders -> one page: what they can, how they learnt, what they cost, where they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from leanseek import units
from leanseek.cost.card import compared
from leanseek.cost.ledger import ALL_STAGES, Ledger
from leanseek.errors import UsageError
from leanseek.evals.curves import Chart, charts
from leanseek.evals.report import bar, cost_cells, render
from leanseek.files import write_atomic
from leanseek.log import RunLog, values_without_nan
from leanseek.run import Run, flat

# Runs that colours tell apart.
MOST_RUNS = 6


def write_comparison(folders: Sequence[Path], path: Path) -> Path:
    """Write one page for several runs; each may still be at work.

    Args:
        folders: of the runs, 2 to MOST_RUNS.
        path: of the page.
    Returns:
        The page's path.
    Raises:
        UsageError: too many runs, or one of them twice.
        RunError: one is not a run folder, or its summary cannot be read.
    """
    if len(folders) > MOST_RUNS:
        raise UsageError(f"{len(folders)} runs are too many for one page: at most {MOST_RUNS}")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError("a run is named twice; each is compared once")
    write_atomic(path, render(contents([Run.open(folder) for folder in folders]), "comparison.html"))
    return path


def contents(runs: Sequence[Run]) -> dict[str, Any]:
    """Return what the page shows, as plain values."""
    labels = _labels([run.folder for run in runs])
    told = []
    for place, (run, label) in enumerate(zip(runs, labels, strict=True)):
        costs = Ledger(run.ledger_path, run.recipe.cost.usd_per_hour, run.recipe.device).totals()[ALL_STAGES]
        unfinished = not all(run.stage_done(stage) for stage in run.recipe.line)
        told.append({"label": label, "colour": f"m{place}", "unfinished": unfinished, "cost": cost_cells(costs)})
    rows = [row for run, label in zip(runs, labels, strict=True) for row in _rows(run, label)]
    rows.sort(key=lambda row: str(row["task"]))  # stable: the runs keep their order
    drawn = _overlaid(runs, labels)
    return {
        "runs": told,
        "tasks": _tasks(runs, labels),
        "rows": rows,
        "tries": sorted({k for row in rows for k in row["passes"]}, key=int),
        "charts": [{"title": chart.title, "caption": chart.caption} for chart in drawn],
        "data": values_without_nan([chart.to_dict() for chart in drawn]),
        "settings": _differences(runs),
    }


def _labels(folders: Sequence[Path]) -> list[str]:
    """Return what to call the runs: their folders' names, with the folder above where two are alike."""
    named = [folder.resolve() for folder in folders]
    often = Counter(folder.name for folder in named)
    return [folder.name if often[folder.name] == 1 else f"{folder.parent.name}/{folder.name}" for folder in named]


def _models(run: Run) -> dict[str, str]:
    return compared(run.recipe.model_dump(mode="json"))


def _last(run: Run, figures: Mapping[str, Any]) -> str | None:
    """Return the name of the last model that a task was measured of."""
    return next((name for name in reversed(_models(run)) if figures.get(name) is not None), None)


def _tasks(runs: Sequence[Run], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return the tasks, each with a bar for every run that was measured at it."""
    tasks: dict[str, list[dict[str, Any]]] = {}
    for place, (run, label) in enumerate(zip(runs, labels, strict=True)):
        for task, figures in (run.summary.get("accuracy") or {}).items():
            if (last := _last(run, figures)) is not None:
                interval = (figures.get("interval") or {}).get(last)
                drawn = bar(last, _models(run)[last], f"m{place}", figures[last], interval)
                tasks.setdefault(task, []).append(drawn | {"label": label})
    return [{"name": task, "bars": bars} for task, bars in sorted(tasks.items())]


def _rows(run: Run, label: str) -> list[dict[str, Any]]:
    """Return a row for every model of a run at every task."""
    rows = []
    for task, figures in (run.summary.get("accuracy") or {}).items():
        for name, title in _models(run).items():
            if figures.get(name) is None:
                continue

            def of(key: str, figures: Mapping[str, Any] = figures, name: str = name) -> Any:
                return (figures.get(key) or {}).get(name)

            passes = {k: units.format_percent(share) for k, share in (of("pass_at_k") or {}).items()}
            sound, length = of("sound"), of("length")
            rows.append(
                {
                    "task": task,
                    "label": label,
                    "model": title,
                    "greedy": units.format_percent(figures[name]),
                    "passes": passes,
                    "sound": "-" if sound is None else units.format_percent(sound),
                    "length": "-" if length is None else f"{length:.0f}",
                }
            )
    return rows


def _overlaid(runs: Sequence[Run], labels: Sequence[str]) -> list[Chart]:
    """Return the charts that at least two runs have, each run's lines in its colour."""
    found: dict[str, list[tuple[int, Chart]]] = {}
    for place, run in enumerate(runs):
        before = {stage: run.recipe.before(stage) for stage in run.recipe.line}
        for chart in charts(RunLog(run.metrics_path).read(), run.recipe.line, before):
            found.setdefault(chart.title, []).append((place, chart))
    joined = []
    for several in found.values():
        if len(several) < 2:
            continue
        curves = [
            replace(curve, label=f"{labels[place]}: {curve.label}", colour=place)
            for place, chart in several
            for curve in chart.curves
            if curve.style != "faint"
        ]
        joined.append(replace(several[0][1], curves=tuple(curves)))
    return joined


def _differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return the settings in which the runs differ, with each run's value."""
    every = [{key: value for key, value in flat(run.recipe).items() if key != "name"} for run in runs]
    keys = list(dict.fromkeys(key for one in every for key in one))
    table = [(key, [_shown(one.get(key)) for one in every]) for key in keys]
    return [(key, values) for key, values in table if len(set(values)) > 1]


def _shown(value: Any) -> str:
    if value is None or value == () or value == {}:
        return "-"
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
