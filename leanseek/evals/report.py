"""Report: a run folder -> report.html, one page that needs no network: what it can, how it learnt, what it cost."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment as Templates
from jinja2 import FunctionLoader, StrictUndefined

from leanseek import units
from leanseek.cost.card import compared, stage_titles
from leanseek.cost.energy import describe_meter
from leanseek.cost.ledger import ALL_STAGES, Ledger
from leanseek.envs.environment import load_environment
from leanseek.errors import TaskError
from leanseek.evals.curves import charts
from leanseek.evals.heat import heat
from leanseek.files import write_atomic
from leanseek.log import RunLog, values_without_nan
from leanseek.run import Run

# Problems per task that are open when the page is; the rest unfold.
OPEN_SAMPLES = 3
# Stages that have a colour of their own.
FIXED = ("tokenizer", "pretrain", "sft", "grpo", "eval")
# What the energy is compared with.
LAMP_W = 10


def write_report(folder: Path) -> Path:
    """Write a run's report.html from what its folder holds; a run under way or broken off has one too.

    Args:
        folder: of the run.
    Returns:
        The page's path.
    Raises:
        RunError: it is not a run folder, or its summary cannot be read.
    """
    run = Run.open(folder)
    write_atomic(run.report_path, render(contents(run)))
    return run.report_path


def render(page: Mapping[str, Any], template: str = "report.html") -> str:
    """Return the page: template, style, script and vendored chart library in one, every text escaped.

    Its content security policy lets only its own two scripts run, and nothing be loaded.
    """
    web = resources.files("leanseek.evals") / "web"

    def read(name: str) -> str:
        return (web / name).read_text(encoding="utf-8")

    templates = Templates(
        loader=FunctionLoader(read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    scripts = [read("vendor/uPlot.iife.min.js"), read("report.js")]
    return templates.get_template(template).render(
        **page,
        styles=[read("vendor/uPlot.min.css"), read("report.css")],
        scripts=scripts,
        allowed=" ".join(f"'sha256-{_digest(script)}'" for script in scripts),
    )


def contents(run: Run) -> dict[str, Any]:
    """Return what the page shows, as plain values: every number is already text."""
    summary = run.summary
    rows = RunLog(run.metrics_path).read()
    values = run.recipe.model_dump(mode="json")
    titles, models = stage_titles(values), compared(values)
    wanted = [stage for stage in run.recipe.line if stage != "eval" or run.recipe.environments]
    titles = {stage: title for stage, title in titles.items() if stage in wanted}
    drawn = charts(rows, run.recipe.line, {stage: run.recipe.before(stage) for stage in run.recipe.line})
    stages = [stage for stage in titles if (summary.get(stage) or {}).get("done")]
    tasks = _tasks(summary.get("accuracy") or {}, models)
    costs = Ledger(run.ledger_path, run.recipe.cost.usd_per_hour, run.recipe.device).totals()
    total = costs[ALL_STAGES]
    machine = summary.get("machine") or {}
    return {
        "name": run.recipe.name,
        "headline": _headline(tasks),
        "machine": _machine(machine),
        "start": None if run.recipe.grpo.start is None else Path(run.recipe.grpo.start).name,
        "judged": bool(run.recipe.environments),
        "unfinished": None if len(stages) == len(titles) else [titles[stage] for stage in stages],
        # An absolute path would only tell strangers where the run lay.
        "resume": f"leanseek make --run {run.folder.name if run.folder.is_absolute() else run.folder} --resume",
        "tasks": tasks,
        "compared": {stage: title for stage, title in models.items() if any(stage in t["shown"] for t in tasks)},
        "colours": {stage: _colour(stage, place) for place, stage in enumerate(models)},
        "tiles": _tiles(total, summary.get("model") or {}),
        "facts": _facts(summary, rows) + _of_own_data(summary, titles),
        "heats": [one.to_dict() for stage, title in titles.items() if (one := heat(rows, stage, title)) is not None],
        "charts": [{"title": chart.title, "caption": chart.caption} for chart in drawn],
        "data": values_without_nan([chart.to_dict() for chart in drawn]),
        "films": _films(run.films_folder, models),
        "watched": _watched(RunLog(run.watched_path).read(), titles),
        "samples": _samples(RunLog(run.samples_path).read(), models),
        "stages": _stages(costs, titles),
        "total": cost_cells(total) if total["seconds"] else None,
        "meter": describe_meter(total["meter"]) if total["meter"] else "",
        "energy": _energy_in_words(total["joules"]),
        "price": units.format_usd(run.recipe.cost.usd_per_hour),
        "recipe": (run.folder / "recipe.toml").read_text(encoding="utf-8"),
        "versions": [
            f"{name} {machine[name]}" for name in ("leanseek", "commit", "torch", "python") if machine.get(name)
        ],
    }


def _tasks(accuracy: Mapping[str, Any], models: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return one entry a task: its bars, and what else was measured."""
    tasks = []
    for name, values in accuracy.items():
        bars = []
        for place, (stage, title) in enumerate(models.items()):
            share = values.get(stage)
            if share is None:
                continue
            interval = (values.get("interval") or {}).get(stage)
            bars.append(bar(stage, title, _colour(stage, place), share, interval))
        tasks.append(
            {
                "name": name,
                "description": _description(name),
                "n": values.get("n"),
                "bars": bars,
                "shown": [bar["stage"] for bar in bars],
                "gain": f"{100 * (bars[-1]['share'] - bars[-2]['share']):+.0f} points" if len(bars) > 1 else "",
                "notes": _notes(values, models),
            }
        )
    return tasks


def bar(stage: str, title: str, colour: str, share: float, interval: Sequence[float] | None) -> dict[str, Any]:
    """Return an accuracy as the pages draw it.

    Args:
        stage: the model's name.
        title: what to call it.
        colour: class of the style sheet.
        share: right answers, 0 to 1.
        interval: 95%, where it is known.
    """
    low, high = interval or (share, share)
    return {
        "stage": stage,
        "title": title,
        "colour": colour,
        "share": share,
        "text": units.format_percent(share),
        "width": f"{100 * share:.2f}",
        "low": f"{100 * low:.2f}",
        "span": f"{100 * (high - low):.2f}",
        "interval": f"95% interval {100 * low:.1f} to {100 * high:.1f}%",
    }


def _colour(stage: str, place: int) -> str:
    """Return the class that colours a model."""
    return stage if stage in ("base", "sft", "grpo") else f"m{place % 6}"


def _notes(values: Mapping[str, Any], models: Mapping[str, str]) -> list[str]:
    """Return what was measured of a task beside greedy accuracy, of the last model that was measured."""
    last = next((stage for stage in reversed(models) if values.get(stage) is not None), None)
    first = next((stage for stage in models if stage != "base" and values.get(stage) is not None), None)
    notes = []
    for stage in dict.fromkeys(stage for stage in (first, last) if stage is not None):
        shares = _of(values, "pass_at_k", stage).items()
        passes = [f"{k} tries {units.format_percent(p)}" for k, p in shares if p is not None]
        if passes:
            when = f"{models[stage]}: " if first != last else ""
            notes.append(when + "solved in " + ", ".join(passes).replace("1 tries", "1 try", 1))
    lengths = {stage: n for stage in models if (n := _of(values, "length").get(stage)) is not None}
    if len(lengths) > 1:
        notes.append("tokens of a reply: " + ", ".join(f"{models[stage]} {n:.0f}" for stage, n in lengths.items()))
    sound = _of(values, "sound").get(last or "")
    if sound is not None:
        notes.append(f"thinking right line by line in {units.format_percent(sound)} of the right answers")
    levels = [f"level {k} {units.format_percent(p)}" for k, p in _of(values, "levels", last).items() if p is not None]
    if len(levels) > 1:
        notes.append(" · ".join(levels))
    return notes


def _of(values: Mapping[str, Any], *keys: str | None) -> Mapping[str, Any]:
    for key in keys:
        values = values.get(key or "") or {}
    return values


def _description(task: str) -> str:
    try:
        return load_environment(task).description
    except TaskError:  # a task of somebody's own that is not installed here
        return ""


def _headline(tasks: list[dict[str, Any]]) -> dict[str, str] | None:
    """Return the task that the last stage lifted most, as the page's first sentence."""
    best: tuple[float, dict[str, str]] | None = None
    for task in tasks:
        if not task["bars"]:
            continue
        last = task["bars"][-1]
        before = task["bars"][-2] if len(task["bars"]) > 1 else None
        gain = last["share"] - before["share"] if before else last["share"]
        if best is None or gain > best[0]:
            words = {
                "task": task["name"],
                "by": {"base": "Pretraining", "sft": "The cold start", "grpo": "Reinforcement learning"}.get(
                    last["stage"], f"The stage {last['stage']}"
                ),
                "before": f"{100 * before['share']:.0f}%" if before else "",
                "after": f"{100 * last['share']:.0f}%",
                "verb": "lifted" if gain > 0 else "moved",
            }
            best = (gain, words)
    return best[1] if best else None


def _tiles(total: Mapping[str, Any], model: Mapping[str, Any]) -> list[dict[str, str]]:
    tiles = []
    if total["seconds"]:
        tiles = [
            {"figure": units.format_seconds(total["seconds"]), "label": "of time"},
            {"figure": units.format_watt_hours(total["joules"]), "label": f"of energy, {_metered(total['meter'])}"},
            {"figure": units.format_usd(total["usd"]), "label": "of machine rent"},
            {"figure": units.format_flops(total["flops"]), "label": "of computing"},
        ]
    if model.get("parameters"):
        active = model.get("active_parameters")
        label = "parameters" + (f", {units.format_count(active)} used per token" if active else "")
        tiles.append({"figure": units.format_count(model["parameters"]), "label": label})
    return tiles


def _facts(summary: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Return how well the parts work together, one figure each."""
    facts = []
    bits = _of(summary, "pretrain").get("bits_per_byte")
    if bits is not None:
        facts.append({"figure": f"{bits:.3f}", "label": "bits per byte of unseen text after pretraining"})
    acceptance = _of(summary, "mtp").get("acceptance")
    if acceptance is not None:
        facts.append({"figure": units.format_percent(acceptance), "label": "of the MTP layer's guesses are accepted"})
    gaps = [row["logprob_gap"] for row in rows if isinstance(row.get("logprob_gap"), float)]
    if gaps:
        facts.append({"figure": f"{max(gaps):.1e}", "label": "largest gap between engine and trainer, in nats"})
    load = _of(summary, "pretrain").get("load_factor")
    if load is not None:
        facts.append({"figure": f"{load:.2f}x", "label": "load of the busiest expert, 1 is even"})
    return facts


def _of_own_data(summary: Mapping[str, Any], titles: Mapping[str, str]) -> list[dict[str, str]]:
    """Return what stages that learnt from the user's data have to show for it."""
    facts = []
    for stage, title in titles.items():
        values = _of(summary, stage)
        before, after = _of(values, "before").get("validation_loss"), values.get("validation_loss")
        if before is not None and after is not None:
            label = f"nats a token of what was kept aside, before and after {title}"
            facts.append({"figure": f"{before:.3f} → {after:.3f}", "label": label})
        if (preferred := values.get("validation_preferred")) is not None:
            label = f"of unseen pairs are told apart rightly after {title}"
            facts.append({"figure": units.format_percent(preferred), "label": label})
        if best := _of(values, "best"):
            label = (
                f"step with the lowest validation loss of {title}, {best['validation_loss']:.3f}; its folder is kept"
            )
            facts.append({"figure": f"{best['step']:.0f}", "label": label})
    return facts


def _films(folder: Path, models: Mapping[str, str]) -> list[dict[str, str]]:
    """Return the films of a run's evaluation, early models' first, each as text that a page can hold."""
    found = [(path, *path.stem.partition("-")[::2]) for path in sorted(folder.glob("*-*.webp"))]
    return [
        {"task": task, "model": models[name], "data": base64.b64encode(path.read_bytes()).decode()}
        for name in models
        for path, task, model in found
        if model == name
    ]


def _samples(rows: Iterable[Mapping[str, Any]], models: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return replies by task and problem, the stages' side by side, in the order of the file."""
    tasks: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = {}
    for row in rows:
        stage = row.get("stage")
        if stage not in models:
            continue
        problems = tasks.setdefault(str(row.get("environment")), {})
        key = (row.get("level"), row.get("prompt"))
        problem = problems.setdefault(
            key,
            {
                "level": row.get("level"),
                "prompt": str(row.get("prompt", "")),
                "gold": str(row.get("gold", "")),
                "replies": [],
            },
        )
        problem["replies"].append(
            {
                "stage": stage,
                "title": models[stage],
                "colour": _colour(stage, list(models).index(stage)),
                "reasoning": str(row.get("reasoning") or "").strip(),
                "answer": str(row.get("answer") or "").strip(),
                "correct": bool(row.get("correct")),
                "sound": row.get("sound"),
            }
        )
    order = list(models)
    for problems in tasks.values():
        for problem in problems.values():
            problem["replies"].sort(key=lambda reply: order.index(reply["stage"]))
    return [
        {"task": task, "open": list(problems.values())[:OPEN_SAMPLES], "more": list(problems.values())[OPEN_SAMPLES:]}
        for task, problems in tasks.items()
    ]


def _watched(rows: Iterable[Mapping[str, Any]], titles: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return how each stage answered the same problems at its first look, on the way and at its last."""
    found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("stage") in titles and isinstance(row.get("look"), int):
            key = (str(row["stage"]), str(row.get("environment")), str(row.get("prompt", "")))
            found.setdefault(key, []).append(row)
    stages: dict[str, list[dict[str, Any]]] = {}
    for (stage, task, prompt), looks in found.items():
        looks.sort(key=lambda row: row["look"])
        if len(looks) < 2:
            continue
        shown = [looks[place] for place in sorted({0, len(looks) // 2, len(looks) - 1})]
        replies = [
            {
                "title": f"look {row['look']} of {looks[-1]['look']}",
                "colour": "grpo" if row is shown[-1] else "sft" if row is not shown[0] else "base",
                "reasoning": str(row.get("reasoning") or "").strip(),
                "answer": str(row.get("answer") or "").strip(),
                "correct": bool(row.get("correct")),
                "sound": row.get("sound"),
            }
            for row in shown
        ]
        problem = {"level": looks[0].get("level"), "prompt": prompt, "gold": str(looks[0].get("gold", ""))}
        stages.setdefault(stage, []).append(problem | {"task": task, "replies": replies})
    return [{"title": titles[stage], "problems": stages[stage]} for stage in titles if stage in stages]


def _stages(costs: Mapping[str, Mapping[str, Any]], titles: Mapping[str, str]) -> list[dict[str, Any]]:
    whole = costs[ALL_STAGES]["seconds"] or 1.0
    known = [stage for stage in titles if stage in costs]
    others = [stage for stage in costs if stage not in titles and stage != ALL_STAGES]
    return [
        {
            "stage": stage,
            "colour": f"s-{stage}" if stage in FIXED else f"s-m{place % 6}",
            "title": titles.get(stage, stage),
            "share": units.format_percent(costs[stage]["seconds"] / whole),
            "width": f"{100 * costs[stage]['seconds'] / whole:.2f}",
            **cost_cells(costs[stage]),
        }
        for place, stage in enumerate((*known, *others))
    ]


def cost_cells(values: Mapping[str, Any]) -> dict[str, str]:
    """Return what something cost, as text."""
    peak = max(values["peak_memory_bytes"], values["device_peak_memory_bytes"])
    rate = values["flops"] / values["seconds"] if values["seconds"] else 0.0
    return {
        "time": units.format_seconds(values["seconds"]),
        "tokens": units.format_count(values["tokens"]) if values["tokens"] else "-",
        "flops": units.format_flops(values["flops"]) if values["flops"] else "-",
        "rate": f"{units.format_flops(rate)}/s" if rate else "-",
        "energy": units.format_joules(values["joules"]),
        "money": units.format_usd(values["usd"]),
        "memory": units.format_bytes(peak) if peak else "-",
    }


def _metered(meter: str) -> str:
    """Return whether joules were measured or estimated, in a word or two."""
    kinds = [kind for kind in ("measured", "estimated") if kind in meter]
    return " and ".join(f"partly {kind}" for kind in kinds) if len(kinds) > 1 else "".join(kinds)


def _energy_in_words(joules: float) -> str:
    return f"what a {LAMP_W} W lamp takes in {units.format_seconds(joules / LAMP_W)}" if joules else ""


def _machine(machine: Mapping[str, Any]) -> str:
    device = machine.get("device")
    if device and device != "cpu":
        return str(device)
    if not machine.get("processor"):
        return ""
    cores = machine.get("cores")
    return f"{cores} cores of {machine['processor']}" if cores else str(machine["processor"])


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
