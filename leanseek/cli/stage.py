"""leanseek tokenizer, pretrain, sft, grpo: the line up to one stage, with what it needs made first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from leanseek.cli.make import Options, Settings, work
from leanseek.errors import UsageError
from leanseek.run import Run, model_folder

# Recipes of runs that start from a model folder, where none is named: on tasks, on data of one's own, and on
# longer text.
STARTED, TUNED, LONGER = "reasoner", "tuner", "longer"


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


def sft(
    recipe: str | None = None, *, data: Path | None = None, options: Options = Options(), settings: Settings
) -> None:
    """Fine-tune a model on your own conversations; or the base model on worked solutions, as a part of the line.

    With --model FOLDER it starts from that model: a run folder, or any model folder that loads. The recipe is then
    tuner. Each line of the data is an object with "messages" as OpenAI's API has them, and "tools" if there are any;
    what the assistant says is learnt. Any setting is an option, --train.X being --sft.X; `leanseek recipes --settings`
    lists them.

    Example: leanseek sft --model runs/laptop --data conversations.jsonl --run runs/mine --train.lora_rank 8

    Args:
        recipe: Name of a recipe, or path of a TOML file; without it, the run's own, or laptop.
        data: JSONL file of conversations.
    """
    work("sft", "sft", *_on_data("sft", data, recipe, options, settings))


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
    work("grpo", "grpo", *_from_folder(STARTED, recipe, options, settings))


def dpo(
    recipe: str | None = None, *, data: Path | None = None, options: Options = Options(), settings: Settings
) -> None:
    """Make better replies likelier against worse ones (DPO), from pairs of your own.

    It starts from --model FOLDER: a run folder, or any model folder that loads. Each line of the data is an object
    with "messages" or a "prompt", and the replies "chosen" and "rejected". Any setting is an option, --train.X being
    --dpo.X; `leanseek recipes --settings` lists them.

    Example: leanseek dpo --model runs/mine --data pairs.jsonl --run runs/preferred --train.beta 0.1

    Args:
        recipe: Name of a recipe, or path of a TOML file; without it, the run's own, or tuner.
        data: JSONL file of pairs.
    """
    if settings.get("model") is None and recipe is None and not (options.run is not None and Run.is_run(options.run)):
        raise UsageError("who learns? give --model FOLDER, a run folder or a model folder that loads")
    recipe, options, settings = _on_data("dpo", data, recipe, options, settings)
    if recipe == TUNED:
        settings = settings | {"stages": {"dpo": {}}}
    work("dpo", "dpo", recipe, options, settings)


def extend(recipe: str | None = None, *, options: Options = Options(), settings: Settings) -> None:
    """Teach a base model a longer context, its positions stretched by YaRN as DeepSeek-V3's are, in two phases.

    It starts from --model FOLDER: a run folder, or any model folder that loads, and reads your own text, or the
    embedded corpus of --environments. Any setting is an option, --train.X being --extend.X, and --stages.halfway.X that
    of the first phase; `leanseek recipes --settings` lists them.

    Example: leanseek extend --model runs/laptop --data.sources my-texts --run runs/longer --train.sequence_tokens 1024

    Args:
        recipe: Name of a recipe, or path of a TOML file; without it, the run's own, or longer.
    """
    if settings.get("model") is None and recipe is None and not (options.run is not None and Run.is_run(options.run)):
        raise UsageError("what is to read longer texts? give --model FOLDER, a run folder or a model folder that loads")
    work("extend", "extend", *_from_folder(LONGER, recipe, options, settings))


def _from_folder(
    usual: str, recipe: str | None, options: Options, settings: Settings
) -> tuple[str | None, Options, Settings]:
    """Return what a run is made with, where --model is a folder that it starts from: by a recipe `usual` for that."""
    model = settings.get("model")
    if model is not None and Path(model).is_dir():
        start = model_folder(model).resolve()
        settings = settings | {"model": str(start / "config.json"), "grpo.start": str(start)}
        if recipe is None:
            folder = options.run or Path("runs") / usual
            options = replace(options, run=folder)
            recipe = None if Run.is_run(folder) and not options.fresh else usual
    return recipe, options, settings


def _on_data(
    stage: str, data: Path | None, recipe: str | None, options: Options, settings: Settings
) -> tuple[str | None, Options, Settings]:
    """Return the same where there may be a file to learn from."""
    settings = dict(settings)
    if data is not None:
        settings[f"{stage}.data"] = str(data.resolve())
    found = _from_folder(TUNED, recipe, options, settings)
    if found[0] == TUNED and f"{stage}.data" not in settings:
        raise UsageError("what is to be learnt? give --data FILE, a conversation or a pair in each line of it")
    return found
