"""Curves: the rows of metrics.jsonl -> charts that a newcomer can read, thinned and smoothed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

# More points than a phone is wide say nothing more.
POINTS = 400
# The bold line is the mean over this share of the curve.
SMOOTHED_SHARE = 0.05

Row = Mapping[str, Any]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Args:
        label: what it is.
        points: (step, value), by step.
        colour: which of the page's colours, from 0.
        style: "line", "faint" (what a bold line smooths, not in the legend) or "dots" (few measurements).
    """

    label: str
    points: Points
    colour: int
    style: Literal["line", "faint", "dots"] = "line"


@dataclass(frozen=True)
class Chart:
    """One chart.

    Args:
        title: what is shown.
        caption: how to read it, in a sentence.
        scale: "number", "percent" (shares) or "log".
        curves: its lines.
    """

    title: str
    caption: str
    scale: Literal["number", "percent", "log"]
    curves: tuple[Curve, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return what the page's script draws: one common list of steps, null where a curve has no value."""
        steps = sorted({step for curve in self.curves for step, _ in curve.points})
        series = []
        for curve in self.curves:
            values = dict(curve.points)
            series.append(
                {
                    "label": curve.label,
                    "colour": curve.colour,
                    "style": curve.style,
                    "values": [values.get(step) for step in steps],
                }
            )
        return {"title": self.title, "scale": self.scale, "steps": steps, "series": series}


def charts(
    rows: Iterable[Row], line: Mapping[str, str] | None = None, before: Mapping[str, str | None] | None = None
) -> list[Chart]:
    """Return the charts that a run's metrics allow, in the order of the stages.

    Args:
        rows: of metrics.jsonl.
        line: stage -> kind, in order; None: the usual stages.
        before: stage -> the stage that it starts from, whose last measurement its own curves start with.
    """
    rows = list(rows)
    tasks = _tasks(rows)
    before = before or {"grpo": "sft"}
    found: list[Chart] = []
    for name, kind in (line or {kind: kind for kind in CHARTS}).items():
        own = [row for row in rows if row.get("stage") == name]
        earlier = [row for row in rows if row.get("stage") == before.get(name)]
        if kind in CHARTS:
            found += CHARTS[kind](USUAL.get(name) or name.replace("_", " ").capitalize(), own, earlier, tasks)
    return [chart for chart in found if any(len(curve.points) > 1 for curve in chart.curves)]


def _of_pretraining(title: str, rows: Sequence[Row], before: Sequence[Row], tasks: Sequence[str]) -> list[Chart]:
    return [
        Chart(
            f"{title}: loss",
            "How surprised the model is by the next token, in nats; lower is better. Dots: text it never reads.",
            "number",
            (
                *_smoothed(rows, "loss", "next token", 0),
                *_smoothed(rows, "mtp_loss", "token after it (MTP)", 2, raw=False),
                *_dots(rows, "validation_loss", "validation", 1),
            ),
        ),
        _balance(title, rows),
    ]


def _loss(title: str, rows: Sequence[Row]) -> Chart:
    """Return how surprised a model is by what it learns, and by what is kept aside."""
    return Chart(
        f"{title}: loss",
        "How surprised the model is by the next token of what it learns, in nats; lower is better. Dots: what it never "
        "learns. Where they rise while the line falls, it learns by heart.",
        "number",
        (*_smoothed(rows, "loss", "learnt", 0), *_dots(rows, "validation_loss", "kept aside", 1)),
    )


def _of_sft(title: str, rows: Sequence[Row], before: Sequence[Row], tasks: Sequence[str]) -> list[Chart]:
    return [
        Chart(
            f"{title}: problems it was not trained on",
            "Share answered right, on problems kept for watching; the worked solutions teach it how to think.",
            "percent",
            _by_task(rows, "heldout", tasks),
        ),
        _loss(title, rows),
    ]


def _of_dpo(title: str, rows: Sequence[Row], before: Sequence[Row], tasks: Sequence[str]) -> list[Chart]:
    return [
        Chart(
            f"{title}: pairs told apart",
            "Share of pairs whose better reply has become likelier than the worse one, by the first model's measure. "
            "Dots: pairs that it never learns from.",
            "percent",
            (
                *_smoothed(rows, "preferred", "learnt", 0),
                *_dots(rows, "validation_preferred", "kept aside", 1),
            ),
        ),
        Chart(
            f"{title}: rewards",
            "How much likelier the better and the worse replies have become than they were at first, times beta.",
            "number",
            (
                *_smoothed(rows, "chosen_reward", "better reply", 2, raw=False),
                *_smoothed(rows, "rejected_reward", "worse reply", 4, raw=False),
            ),
        ),
        Chart(
            f"{title}: loss",
            "log 2 = 0.69 at first, where no reply is preferred; lower is better. Dots: pairs it never learns from.",
            "number",
            (*_smoothed(rows, "loss", "learnt", 0), *_dots(rows, "validation_loss", "kept aside", 1)),
        ),
    ]


def _of_grpo(title: str, rows: Sequence[Row], before: Sequence[Row], tasks: Sequence[str]) -> list[Chart]:
    return [
        Chart(
            f"{title}: reward",
            "Mean reward of the replies that it samples while it practises: 1 for a right answer, 0 for a wrong one.",
            "number",
            _smoothed(rows, "reward", "reward", 0),
        ),
        Chart(
            f"{title}: problems it was not trained on",
            "Share answered right, on problems kept for watching; step 0 is where the stage before it ended. If it "
            "rises, the model learns and does not memorise.",
            "percent",
            _by_task(rows, "heldout", tasks, before),
        ),
        Chart(
            f"{title}: right answers while it practises",
            "Share of sampled replies that are right, by task.",
            "percent",
            _each(rows, "correct", tasks),
        ),
        Chart(
            f"{title}: length of a reply",
            "Tokens of a sampled reply, thinking and answer together; by effort, where prompts ask for one.",
            "number",
            (*_smoothed(rows, "length", "tokens", 3), *_each(rows, "length", ("low", "high", "max"))),
        ),
        Chart(
            f"{title}: entropy",
            "How open the next token is while it samples, in nats. At 0 it says the same each time and learns no more.",
            "number",
            _smoothed(rows, "entropy", "entropy", 2),
        ),
        Chart(
            f"{title}: clipped tokens",
            "Share of sampled tokens whose probability moved further than the objective lets count.",
            "percent",
            _smoothed(rows, "clip_fraction", "clipped", 1),
        ),
        _balance(title, rows),
        Chart(
            f"{title}: engine against trainer",
            "Largest difference between the two in a sampled token's log-probability. Far below 1: it is one model.",
            "log",
            _smoothed([row for row in rows if (_number(row, "logprob_gap") or 0) > 0], "logprob_gap", "gap", 4),
        ),
    ]


def _of_distillation(title: str, rows: Sequence[Row], before: Sequence[Row], tasks: Sequence[str]) -> list[Chart]:
    return [
        Chart(
            f"{title}: distance from the teacher",
            "Divergence of the student's next-token distribution from its teacher's, in nats; 0: they are the same.",
            "number",
            _smoothed(rows, "loss", "divergence", 0),
        ),
        Chart(
            f"{title}: problems it was not trained on",
            "Share answered right, on problems kept for watching; step 0 is where the stage before it ended.",
            "percent",
            _by_task(rows, "heldout", tasks, before),
        ),
    ]


def _balance(title: str, rows: Sequence[Row]) -> Chart:
    return Chart(
        f"{title}: load of the busiest expert",
        "Tokens of the expert that is used most, over an expert's mean, in the worst layer; 1: all are used alike.",
        "number",
        _smoothed(rows, "load_factor", "load", 5),
    )


def _each(rows: Sequence[Row], prefix: str, names: Sequence[str]) -> tuple[Curve, ...]:
    """Return a smooth curve for each name that the rows have."""
    return tuple(
        curve
        for index, name in enumerate(names)
        for curve in _smoothed(rows, f"{prefix}_{name}", name, index, raw=False)
    )


# Titles of the usual stages.
USUAL = {"pretrain": "Pretraining", "sft": "Cold start (SFT)", "grpo": "GRPO", "dpo": "Preferences (DPO)"}
# Kind of stage -> what is drawn of it.
CHARTS = {
    "pretrain": _of_pretraining,
    "sft": _of_sft,
    "grpo": _of_grpo,
    "distill": _of_distillation,
    "dpo": _of_dpo,
    "extend": _of_pretraining,
}


def thin(points: Points, limit: int = POINTS) -> Points:
    """Return at most `limit` points, each the mean of its neighbours."""
    if len(points) <= limit:
        return points
    edges = [len(points) * i // limit for i in range(limit + 1)]
    return [_mean(points[start:end]) for start, end in pairwise(edges)]


def smooth(points: Points) -> Points:
    """Return each point's mean with its neighbours; the window shrinks at the ends."""
    reach = round(len(points) * SMOOTHED_SHARE / 2)
    if reach == 0:
        return points
    smoothed = []
    for index, (step, _) in enumerate(points):
        near = min(reach, index, len(points) - 1 - index)
        smoothed.append((step, _mean(points[index - near : index + near + 1])[1]))
    return smoothed


def _smoothed(rows: Sequence[Row], key: str, label: str, colour: int, raw: bool = True) -> tuple[Curve, ...]:
    points = thin(_points(rows, key))
    if not points:
        return ()
    bold = smooth(points)
    faint = (Curve(label, points, colour, "faint"),) if raw and bold != points else ()
    return (*faint, Curve(label, bold, colour))


def _dots(rows: Sequence[Row], key: str, label: str, colour: int) -> tuple[Curve, ...]:
    points = _points(rows, key)
    return (Curve(label, points, colour, "dots"),) if points else ()


def _by_task(rows: Sequence[Row], prefix: str, tasks: Sequence[str], before: Sequence[Row] = ()) -> tuple[Curve, ...]:
    """Return a curve a task; it starts at step 0 with the last value that the stage before it has."""
    found = []
    for index, task in enumerate(tasks):
        key = f"{prefix}_{task}"
        start = [(0, value) for _, value in _points(before, key)[-1:]]
        points = _points(rows, key)
        if points:
            found.append(Curve(task, points if points[0][0] == 0 else start + points, index, "dots"))
    return tuple(found)


def _tasks(rows: Iterable[Row]) -> list[str]:
    """Return the tasks that the rows name, so that a task has one colour in all charts."""
    found: dict[str, None] = {}
    for row in rows:
        for key in row:
            for prefix in ("heldout_", "correct_"):
                if key.startswith(prefix):
                    found[key.removeprefix(prefix)] = None
    return sorted(found)


def _points(rows: Sequence[Row], key: str) -> Points:
    values = {}
    for row in rows:
        step, value = _number(row, "step"), _number(row, key)
        if step is not None and value is not None:
            values[step] = value
    return sorted(values.items())


def _number(row: Row, key: str) -> float | None:
    value = row.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _mean(points: Points) -> tuple[float, float]:
    """Return the middle step and the mean value."""
    middle = points[len(points) // 2][0]
    return middle, sum(value for _, value in points) / len(points)
