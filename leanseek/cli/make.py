"""leanseek make: the whole line, from corpus to card, in one run folder."""

from __future__ import annotations

import json as json_format
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from leanseek.cost.energy import describe_meter
from leanseek.errors import UsageError
from leanseek.run import Run
from leanseek.settings import Recipe, load_recipe
from leanseek.units import format_flops, format_joules, format_percent, format_seconds, format_usd
from leanseek.variables import torchrun

DEFAULT_RECIPE = "laptop"
# Stages whose energy is told for each token, and what is done with one there.
ENERGY_OF = {"pretrain": "pretrained", "sft": "fine-tuned", "grpo": "sampled and learnt from", "eval": "sampled"}
Settings = Annotated[dict[str, Any], Parameter(parse=False)]


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """What the commands that work in a run folder have in common, beside the settings.

    Args:
        run: Run folder; without it, runs/ and the recipe's name.
        fresh: Delete what the folder has of an earlier run first.
        resume: Go on with a run, and fail if there is none.
        dry_run: Say what would be made and how much work it is, and do nothing.
        json: Print the outcome as JSON.
    """

    run: Path | None = None
    fresh: bool = False
    resume: bool = False
    dry_run: bool = False
    json: bool = False


def make(recipe: str | None = None, *, options: Options = Options(), settings: Settings) -> None:
    """Make a model from nothing: corpus, tokenizer, pretraining, SFT, GRPO, evaluation, card and report.

    A run folder that exists goes on where it is. Any setting is an option, such as --grpo.steps 40,
    --device cuda or --threads 2; `leanseek recipes --settings` lists them.

    Example: leanseek make laptop --run runs/mine --pretrain.steps 300

    Args:
        recipe: Name of a recipe, or path of a TOML file; without it, the run's own, or laptop.
    """
    work("make", "eval", recipe, options, settings)


def work(command: str, until: str, recipe: str | None, options: Options, settings: dict[str, Any]) -> None:
    """Make a run's stages up to one of them.

    Args:
        command: as it was called, to say how to go on.
        until: the last stage.
        recipe: name or path; None: the run's own, or the default.
        options: as given.
        settings: dotted name -> value, over the recipe's.
    """
    if options.fresh and options.resume:
        raise UsageError("--fresh and --resume exclude each other: start anew, or go on?")
    folder = options.run or Path("runs") / Path(recipe or DEFAULT_RECIPE).name.removesuffix(".toml")
    goes_on = Run.is_run(folder) and not options.fresh
    if options.resume and not goes_on:
        Run.open(folder)  # says that it is not a run, and which are near
    resolved = load_recipe(folder / "recipe.toml" if goes_on and recipe is None else recipe or DEFAULT_RECIPE, settings)
    # Below, so that a wrong setting is told at once and --help does not wait for torch.
    if options.dry_run:
        from leanseek.stages import dry_run

        tell(dry_run(resolved), options.json)
        return
    from leanseek import stages

    ranks = stages.join_ranks(resolved, until)
    if ranks is None or ranks.first:
        # Processes that torchrun starts again after one has died go on with the run that they began.
        run = open_run(folder, resolved, fresh=options.fresh and not torchrun("TORCHELASTIC_RESTART_COUNT", 0))
    else:
        run = Run(folder, resolved)
    try:
        stages.make(run, until, ranks)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"stopped; what is done is saved in {folder}: go on with leanseek {command} --run {folder}"
        ) from None
    if ranks is not None and not ranks.first:
        return
    if options.json:
        print(json_format.dumps(run.summary, indent=2, ensure_ascii=False))
    else:
        print("\n".join(summary_lines(run)))


def open_run(folder: Path, recipe: Recipe, *, fresh: bool = False) -> Run:
    """Return the run of a folder: the one that is there with the recipe's settings, or a new one.

    Args:
        folder: of the run.
        recipe: resolved settings.
        fresh: whether an earlier run's files are deleted first.
    Raises:
        RunError: settings that the run cannot change any more, or a folder of something else.
    """
    if fresh and Run.is_run(folder):
        # Not opened first: a damaged run must be deletable.
        earlier = Run(folder, recipe)
        with earlier.lock():
            earlier.clear()
    if Run.is_run(folder):
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
        models = ["base", *run.recipe.line]
        shares = [f"{name} {format_percent(figures[name])}" for name in models if figures.get(name) is not None]
        lines.append(f"  {name}: {', '.join(shares)} of {figures.get('n', '?')} held-out problems")
    if totals.get("joules") is not None:
        each = [
            f"{format_joules(one['joules'] / one['tokens'])} a token {what}"
            for stage, what in ENERGY_OF.items()
            if (one := summary.get(stage, {})).get("joules") is not None and one.get("tokens")
        ]
        each.append(describe_meter(str(totals.get("meter") or "")))
        lines.append(f"  energy: {'; '.join(each)}")
    lines += [f"  {path}" for path in (run.report_path, run.card_path) if path.is_file()]
    if run.latest() is not None:
        lines.append(f"talk with it: leanseek chat {run.folder}")
    return lines


def tell(plan: dict[str, Any], json: bool) -> None:
    """Print what a dry run found."""
    if json:
        print(json_format.dumps(plan, indent=2, ensure_ascii=False))
        return
    for key, value in plan.items():
        print(f"{key.replace('_', ' '):28}{_shown(value)}")


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_shown(one)}" for name, one in value.items())
    if isinstance(value, float):
        return f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
