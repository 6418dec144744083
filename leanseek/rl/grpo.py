"""GRPO stage: sample, score, learn; the engine and the trainer share the weights in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from leanseek.checkpoint.directory import load_model
from leanseek.engine.pool import EnginePool
from leanseek.envs.environment import Environment
from leanseek.model.transformer import Transformer
from leanseek.rl.rollouts import Rollouts
from leanseek.train.objectives.grpo import Grpo
from leanseek.train.stage import Stage


def grpo(
    stage: Stage, environments: Sequence[Environment], evaluate: Callable[[Transformer], dict[str, float]]
) -> dict[str, Any]:
    """Reinforce what leads to right answers; return the stage's figures.

    Args:
        stage: of a run.
        environments: tasks that problems are drawn from and checked by.
        evaluate: model -> accuracy per task, shown on the way.
    """
    recipe = stage.run.recipe
    settings = recipe.grpo
    model = stage.model()
    engine = EnginePool(
        model,
        stage.tokenizer,
        workers=stage.workers,
        max_batch=settings.prompts_per_step * settings.samples_per_prompt,
        max_context_tokens=settings.max_new_tokens + recipe.data.sequence_tokens,
        record_experts=settings.replay_routing,
    )
    reference = None
    if settings.kl_weight > 0:
        start = stage.run.latest("sft")
        assert start is not None, "the stage's model came from it"
        reference = load_model(start, dtype=recipe.dtype, device=recipe.device)
    rollouts = Rollouts(engine, environments, recipe.levels, settings, recipe.seed, stage.meter)
    objective = Grpo(settings.clip_low, settings.clip_high, settings.temperature, settings.kl_weight, reference)
    worst: dict[str, float] = {}
    trainer = stage.fit(model, objective, rollouts.batch, {"validate": lambda: evaluate(model)})
    rows = stage.log.read("grpo")
    if gaps := [row["logprob_gap"] for row in rows if row.get("logprob_gap") is not None]:
        worst["logprob_gap"] = max(gaps)
    if agreed := [row["routing_agreement"] for row in rows if row.get("routing_agreement") is not None]:
        worst["routing_agreement"] = min(agreed)
    samples = trainer.done * settings.prompts_per_step * settings.samples_per_prompt
    return {"steps": trainer.done, "samples": samples, **worst}
