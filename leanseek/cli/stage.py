"""leanseek tokenizer, pretrain, sft, grpo: the line up to one stage; whatever earlier stage is lacking is made first."""

from __future__ import annotations

from pathlib import Path

from leanseek.cli.make import Settings, work


def tokenizer(
    recipe: str | None = None,
    *,
    run: Path | None = None,
    fresh: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    json: bool = False,
    settings: Settings,
) -> None:
    """Generate or read the corpus, learn the tokenizer, and turn text into tokens.

    Any setting is an option; `leanseek recipes --settings` lists them.

    Example: leanseek tokenizer laptop --data.sources my-texts/ --train.vocab_size 512

    Args:
        recipe: Name of a recipe or path of a TOML file; without it, the run's own, or laptop.
        run: Run folder; without it, runs/ and the recipe's name.
        fresh: Delete what the folder has of an earlier run first.
        resume: Go on with a run, and fail if there is none.
        dry_run: Say what would be made, and how much work it is.
        json: Print the summary as JSON.
    """
    work("tokenizer", "tokenizer", recipe, run=run, fresh=fresh, resume=resume, dry_run=dry_run, json=json, settings=settings)


def pretrain(
    recipe: str | None = None,
    *,
    run: Path | None = None,
    fresh: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    json: bool = False,
    settings: Settings,
) -> None:
    """Pretrain the base model, after the tokenizer if there is none.

    Any setting is an option, --train.X being --pretrain.X; `leanseek recipes --settings` lists them.

    Example: leanseek pretrain laptop --train.steps 300

    Args:
        recipe: Name of a recipe or path of a TOML file; without it, the run's own, or laptop.
        run: Run folder; without it, runs/ and the recipe's name.
        fresh: Delete what the folder has of an earlier run first.
        resume: Go on with a run, and fail if there is none.
        dry_run: Say what would be made, and how much work it is.
        json: Print the summary as JSON.
    """
    work("pretrain", "pretrain", recipe, run=run, fresh=fresh, resume=resume, dry_run=dry_run, json=json, settings=settings)


def sft(
    recipe: str | None = None,
    *,
    run: Path | None = None,
    fresh: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    json: bool = False,
    settings: Settings,
) -> None:
    """Fine-tune the base model on worked solutions, after the stages before it if they are lacking.

    Any setting is an option, --train.X being --sft.X; `leanseek recipes --settings` lists them.

    Example: leanseek sft laptop --run runs/mine --train.traces_per_environment 1000

    Args:
        recipe: Name of a recipe or path of a TOML file; without it, the run's own, or laptop.
        run: Run folder; without it, runs/ and the recipe's name.
        fresh: Delete what the folder has of an earlier run first.
        resume: Go on with a run, and fail if there is none.
        dry_run: Say what would be made, and how much work it is.
        json: Print the summary as JSON.
    """
    work("sft", "sft", recipe, run=run, fresh=fresh, resume=resume, dry_run=dry_run, json=json, settings=settings)


def grpo(
    recipe: str | None = None,
    *,
    run: Path | None = None,
    fresh: bool = False,
    resume: bool = False,
    dry_run: bool = False,
    json: bool = False,
    settings: Settings,
) -> None:
    """Train by reinforcement on problems that check themselves, after the stages before it if they are lacking.

    Any setting is an option, --train.X being --grpo.X; `leanseek recipes --settings` lists them.

    Example: leanseek grpo laptop --run runs/mine --train.steps 40

    Args:
        recipe: Name of a recipe or path of a TOML file; without it, the run's own, or laptop.
        run: Run folder; without it, runs/ and the recipe's name.
        fresh: Delete what the folder has of an earlier run first.
        resume: Go on with a run, and fail if there is none.
        dry_run: Say what would be made, and how much work it is.
        json: Print the summary as JSON.
    """
    work("grpo", "grpo", recipe, run=run, fresh=fresh, resume=resume, dry_run=dry_run, json=json, settings=settings)
