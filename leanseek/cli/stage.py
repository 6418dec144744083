"""leanseek tokenizer, pretrain, sft, grpo: the line up to one stage, with what it needs made first."""

from __future__ import annotations

from leanseek.cli.make import Options, Settings, work


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


def grpo(recipe: str | None = None, *, options: Options = Options(), settings: Settings) -> None:
    """Train by reinforcement on problems that check themselves, after the stages before it if they are lacking.

    Any setting is an option, --train.X being --grpo.X; `leanseek recipes --settings` lists them.

    Example: leanseek grpo laptop --run runs/mine --train.steps 40

    Args:
        recipe: Name of a recipe, or path of a TOML file; without it, the run's own, or laptop.
    """
    work("grpo", "grpo", recipe, options, settings)
