"""SFT: the cold start on worked solutions, thinking first, with loss on the assistant's tokens only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from leanseek.data.batches import Batch
from leanseek.data.traces import TraceBatches, traces
from leanseek.envs.environment import Environment
from leanseek.model.transformer import Transformer
from leanseek.sections.tuning import SftSettings
from leanseek.tokens.chat import ChatFormat
from leanseek.train.objectives.next_token import NextToken
from leanseek.train.schedules import mtp_weight
from leanseek.train.stage import Stage


def sft(
    stage: Stage, environments: Sequence[Environment], evaluate: Callable[[Transformer], dict[str, float]]
) -> dict[str, Any]:
    """Teach a pretrained model to think and answer; return the stage's figures.

    Args:
        stage: of a run.
        environments: tasks that traces are made of.
        evaluate: model -> accuracy per task on the development split, which no stage trains on;
            their mean ends the stage where it reaches `sft.enough`, so that RL starts with something
            to sharpen.
    """
    recipe, settings = stage.run.recipe, stage.run.recipe.settings_of(stage.name, SftSettings)
    if settings.traces is not None:
        examples = stage.conversations(settings.traces)
    else:
        examples = traces(
            ChatFormat(stage.tokenizer),
            environments,
            settings.traces_per_environment,
            levels=recipe.levels,
            seed=recipe.seed,
            hasty=settings.hasty,
            efforts=recipe.efforts,
        )
    batches = TraceBatches(examples, settings.batch_sequences, recipe.seed)
    model = stage.model()
    latest: dict[str, float] = {}

    def validate() -> dict[str, float]:
        latest.clear()
        latest.update(evaluate(model))
        return latest

    def enough(measured: Any) -> bool:
        return settings.enough is not None and sum(measured.values()) / len(measured) >= settings.enough

    def batch(step: int) -> Batch:
        weight = mtp_weight(step, settings.steps or step + 1, settings)
        return replace(batches.batch(step), mtp=step % settings.mtp_every == 0, mtp_weight=weight)

    objective = NextToken(settings.mtp_weight, settings.balance_loss, settings.most_logits)
    trainer = stage.fit(model, objective, batch, {"validate": validate, "enough": enough})
    measured = latest or validate()  # nothing is left to do where the last step was saved, but not recorded
    passes = trainer.done / batches.batches_per_pass
    return {"steps": trainer.done, "traces": len(examples), "passes": passes, **measured}
