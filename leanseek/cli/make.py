"""leanseek make: the whole line, from corpus to card, in one run folder."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from leanseek.errors import UsageError
from leanseek.run import Run
from leanseek.settings import Recipe, load_recipe
from leanseek.units import format_flops, format_joules, format_percent, format_seconds, format_usd

DEFAULT_RECIPE = "laptop"
Settings = Annotated[dict[str, Any], Parameter(parse=False)]


def make(
    recipe: str | None = None,
    *,
    run: Path | None = None,
    fresh: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    json: bool = False,
    settings: Settings,
) -> None:
    """Make a model from nothing: corpus, tokenizer, pretraining, SFT, GRPO, evaluation, card and report.

    A run folder that exists goes on where it is. Any setting is an option, such as --grpo.steps 40,
    --device cuda or --threads 2; `leanseek recipes --settings` lists them.

    Example: leanseek make laptop --run runs/mine --pretrain.steps 300

    Args:
        recipe: Name of a recipe or path of a TOML file; without it, the run's own, or laptop.
        run: Run folder; without it, runs/ and the recipe's name.
        fresh: Delete what the folder has of an earlier run first.
        resume: Go on with a run, and fail if there is none.
        dry_run: Say what would be made, and how much work it is.
        json: Print the summary as JSON.
    """
    work("make", "eval", recipe, run=run, fresh=fresh, resume=resume, dry_run=dry_run, json=json, settings=settings)


def work(
    command: str,
    until: str,
    recipe: str | None,
    *,
    run: Path | None,
    fresh: bool,
    resume: bool,
    dry_run: bool,
    json: bool,
    settings: dict[str, Any],
) -> None:
    """Make a run's stages up to one of them; the options are those of `make`.

    Args:
        command: as it was called, to say how to go on.
        until: the last stage.
    """
    if fresh and resume:
        raise UsageError("--fresh and --resume exclude each other: start anew, or go on?")
    folder = run or Path("runs") / Path(recipe or DEFAULT_RECIPE).name.removesuffix(".toml")
    goes_on = Run.is_run(folder) and not fresh
    resolved = load_recipe(folder / "recipe.toml" if goes_on and recipe is None else recipe or DEFAULT_RECIPE, settings)
    if dry_run:
        # Here, so that a wrong setting is told at once and --help does not wait for torch.
        from leanseek import stages

        _tell_plan(stages.dry_run(resolved), json)
        return
    opened = open_run(folder, resolved, fresh=fresh, resume=resume)
    from leanseek import stages

    try:
        stages.make(opened, until)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped; what is done is saved in {folder}: go on with leanseek {command} --run {folder}"
        ) from None
    if json:
        print(json_format.dumps(opened.summary, indent=2, ensure_ascii=False))
    else:
        print("\n".join(summary_lines(opened)))


def open_run(folder: Path, recipe: Recipe, *, fresh: bool = False, resume: bool = False) -> Run:
    """Return the run of a folder: the one that is there with the recipe's settings, or a new one.

    Args:
        folder: of the run.
        recipe: resolved settings.
        fresh: whether an earlier run's files are deleted first.
        resume: whether there must be a run.
    Raises:
        RunError: nothing to resume, settings that the run cannot change any more, or a folder of something else.
    """
    if fresh and Run.is_run(folder):
        # Not opened first: a damaged run must be deletable.
        earlier = Run(folder, recipe)
        with earlier.lock():
            earlier.clear()
    if resume or Run.is_run(folder):
        opened = Run.open(folder)
        if opened.recipe != recipe:
            with opened.lock():
                opened.change(recipe)
        return opened
    return Run.create(folder, recipe)


def summary_lines(run: Run) -> list[str]:
    """Return what a person wants to know of a run: what it cost, what it can do, where to look."""
    summary = run.summary
    totals = summary.get("totals", {})
    formats = {"seconds": format_seconds, "flops": format_flops, "joules": format_joules, "usd": format_usd}
    costs = [show(totals[key]) for key, show in formats.items() if totals.get(key) is not None]
    lines = [f"{run.folder}: {', '.join(costs)}" if costs else str(run.folder)]
    for name, figures in summary.get("accuracy", {}).items():
        shares = [f"{stage} {format_percent(figures[stage])}" for stage in ("base", "sft", "grpo") if stage in figures]
        lines.append(f"  {name}: {', '.join(shares)} of {figures.get('n', '?')} held-out problems")
    lines += [f"  {path}" for path in (run.report_path, run.card_path) if path.is_file()]
    if run.latest() is not None:
        lines.append(f"talk with it: leanseek chat {run.folder}")
    return lines


def _tell_plan(plan: dict[str, Any], json: bool) -> None:
    if json:
        print(json_format.dumps(plan, indent=2, ensure_ascii=False))
        return
    for key, value in plan.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
        print(f"{key.replace('_', ' '):28}{f'{shown:,.6g}' if isinstance(shown, float) else _number(shown)}")


def _number(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None else str(value)
