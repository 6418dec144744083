"""Tune: fine-tuning of any model on the user's own conversations, in full or by low-rank updates."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from leanseek.data.batches import Batch, packed_examples
from leanseek.data.dialogues import examples_of, read_dialogues, set_aside
from leanseek.data.traces import TraceBatches
from leanseek.errors import RunError
from leanseek.log import say
from leanseek.sections.tuning import SftSettings, TuneSettings
from leanseek.tokens.chat import ChatFormat
from leanseek.train.lora import optimiser_of
from leanseek.train.objectives.next_token import NextToken, mean_loss
from leanseek.train.schedules import mtp_weight
from leanseek.train.stage import Stage


def tune(stage: Stage) -> dict[str, Any]:
    """Fine-tune a model on `data`, with loss on the assistant's tokens only; return the stage's figures.

    Args:
        stage: of a run, of kind sft; its settings have `data`.
    Raises:
        DataError: a line that cannot be learnt from.
        RunError: the file has changed since the stage began.
    """
    recipe = stage.run.recipe
    settings = recipe.settings_of(stage.name, SftSettings)
    assert settings.data is not None, "else there are worked solutions"
    dialogues = read_dialogues(settings.data)
    unchanged(stage, settings.data, len(dialogues))
    chat, cut = ChatFormat(stage.tokenizer), settings.too_long == "cut"
    examples = examples_of(dialogues, chat, longest_of(stage, settings), cut=cut)
    taught, aside = set_aside(examples, settings.held_out, recipe.seed)
    if not aside:
        say("  nothing is kept aside, so there is no validation loss")
    batches = TraceBatches(taught, settings.batch_sequences, recipe.seed)
    steps = steps_of(settings, batches.batches_per_pass)
    parts = math.ceil(len(aside) / settings.batch_sequences)
    held_out = packed_examples(aside).pieces(parts, settings.micro_tokens) if aside else []
    validation = [batch.to(recipe.device) for batch, _ in held_out]
    model = stage.model()
    most_logits = settings.most_logits

    def validate() -> dict[str, float]:
        return {"validation_loss": mean_loss(model, validation, most_logits)} if validation else {}

    def batch(step: int) -> Batch:
        weight = mtp_weight(step, steps or step + 1, settings)
        # Low-rank updates are of the main layers alone.
        runs = step % settings.mtp_every == 0 and not settings.lora_rank
        return replace(batches.batch(step), mtp=runs, mtp_weight=weight)

    before = stage.measured_before(validate)
    objective = NextToken(settings.mtp_weight, settings.balance_loss, most_logits)
    optimiser = optimiser_of(settings, recipe.seed)
    hooks = {"validate": validate} if validation else {}
    trainer = stage.fit(model, objective, batch, hooks, optimiser, steps=steps)
    after = validate()
    for name, value in after.items():
        say(f"  {name.replace('_', ' ')}: {before[name]:.3f} before, {value:.3f} after, of {len(aside)} kept aside")
    passes = trainer.done / batches.batches_per_pass
    learnt = sum(sum(learnt) for _, learnt in taught)
    figures = {"conversations": len(taught), "held_out": len(aside), "learnt_tokens": learnt}
    return {"steps": trainer.done, "passes": passes, **figures, **after}


def longest_of(stage: Stage, settings: TuneSettings) -> int:
    """Return the most tokens that a conversation may have."""
    context = stage.config.max_position_embeddings
    return min(settings.longest or context, context)


def steps_of(settings: TuneSettings, per_pass: int) -> int | None:
    """Return how many steps a stage takes; None: as many as its minutes allow."""
    if settings.steps is not None or settings.minutes is not None:
        return settings.steps
    return max(1, math.ceil(settings.passes * per_pass))


def unchanged(stage: Stage, path: str, count: int) -> None:
    """Write down what a stage learns from, or check that it is still that.

    Raises:
        RunError: the file is another one than when the stage began.
    """
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    known = stage.run.summary.get(stage.name, {}).get("data")
    if known is None:
        stage.run.update(stage.name, {"data": {"file": Path(path).name, "sha256": digest, "lines": count}})
    elif known["sha256"] != digest:
        raise RunError(
            f"{path} has changed since {stage.name} began with it in {stage.run.folder}: put the old one back, take "
            "another folder with --run, or start afresh with --fresh"
        )
