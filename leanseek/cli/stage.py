"""leanseek tokenizer, pretrain, sft, grpo: the line up to one stage, with what it needs made first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from leanseek.cli.make import Options, Settings, work
from leanseek.errors import UsageError
from leanseek.run import Run, model_folder

# Recipe of a run that starts from a model folder, where none is named.
STARTED = "reasoner"


def tokenizer(recipe: str | None = None, *, options: Options = Options(), settings: Settings) -> None:
    """Generate or read the corpus, learn the tokenizer, and turn text into tokens.

    Any setting is an option; `leanseek recipes --settings` lists them.

    Example: leanseek tokenizer laptop --data.sources my-texts

    Args:
        recipe: Name of a recipe, or path of a TOML file; without it, the run's own, or laptop.
    """
    work("tokenizer", "tokenizer", recipe, options, settings)


def pretrain(recipe: str | None = None, *, options: Options = Options(), settings: Settings) -> None:
    """Pretrain the base model, after the tokenizer if there is none.

    Any setting is an option, --train.X being --pretrain.X; `leanseek recipes --settings` lists them.

    Example: leanseek pretrain laptop --train.steps 300

    Args:
        recipe: Name of a recipe, or path of a TOML file; without it, the run's own, or laptop.
    """
    work("pretrain", "pretrain", recipe, options, settings)


def sft(recipe: str | None = None, *, options: Options = Options(), settings: Settings) -> None:
    """Fine-tune the base model on worked solutions, after the stages before it if they are lacking.

    Any setting is an option, --train.X being --sft.X; `leanseek recipes --settings` lists them.

    Example: leanseek sft laptop --run runs/mine --train.traces_per_environment 1000

    Args:
        recipe: Name of a recipe, or path of a TOML file; without it, the run's own, or laptop.
    """
    work("sft", "sft", recipe, options, settings)


def grpo(
    recipe: str | None = None, *, env: tuple[str, ...] = (), options: Options = Options(), settings: Settings
) -> None:
    """Train by reinforcement on problems that check themselves, after the stages before it if they are lacking.

    With --model FOLDER it starts from that model instead: a run folder, or any model folder that loads. The
    recipe is then reasoner. Any setting is an option, --train.X being --grpo.X; `leanseek recipes --settings` lists
    them.

    Example: leanseek grpo --model runs/laptop --env my_package.my_task --run runs/mine --train.steps 40

    Args:
        recipe: Name of a recipe, or path of a TOML file; without it, the run's own, or laptop.
        env: Task to train on, by its name or the dotted name of a module; may be given several times.
    """
    settings = dict(settings)
    if env:
        if "environments" in settings:
            raise UsageError("--env and --environments say the same: give one of them")
        settings["environments"] = [name for names in env for name in names.split(",")]
    model = settings.get("model")
    if model is not None and Path(model).is_dir():
        start = model_folder(model).resolve()
        settings |= {"model": str(start / "config.json"), "grpo.start": str(start)}
        if recipe is None:
            folder = options.run or Path("runs") / STARTED
            options = replace(options, run=folder)
            recipe = None if Run.is_run(folder) and not options.fresh else STARTED
    work("grpo", "grpo", recipe, options, settings)
