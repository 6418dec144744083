"""GRPO stage: sample, score, learn; the engine and the trainer share the weights in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from leanseek.checkpoint.directory import load_model
from leanseek.engine.engine import Engine
from leanseek.engine.pool import EnginePool
from leanseek.engine.shared import SharedEngine
from leanseek.envs.environment import Environment
from leanseek.log import say
from leanseek.model.transformer import Transformer
from leanseek.rl.agreement import agreement_of
from leanseek.rl.cluster import Cluster
from leanseek.rl.judge import Judge
from leanseek.rl.rollouts import Rollouts
from leanseek.rl.stream import COPIES, Seat, Stream, copy_of
from leanseek.sections.grpo import GrpoSettings
from leanseek.train.lora import optimiser_of
from leanseek.train.objectives.forms import form_of
from leanseek.train.objectives.grpo import GroupBatch, Grpo
from leanseek.train.stage import Stage

# From which distance on bad replies are left out where samples are stale and the settings do not say; nats a token.
STALE_OFF_POLICY = 0.5


def grpo(
    stage: Stage, environments: Sequence[Environment], evaluate: Callable[[Transformer], dict[str, float]]
) -> dict[str, Any]:
    """Reinforce what leads to right answers; return the stage's figures.

    Args:
        stage: of a run.
        environments: tasks that problems are drawn from and checked by.
        evaluate: model -> accuracy per task, shown on the way.
    Raises:
        RunError: trainer and engine do not agree on what was sampled.
        ServerError: a judge that is wanted does not answer.
    """
    recipe = stage.run.recipe
    settings = recipe.settings_of(stage.name, GrpoSettings)
    model = stage.model()
    engine = EnginePool(
        model,
        stage.tokenizer,
        workers=stage.workers,
        max_batch=settings.prompts_per_step * settings.samples_per_prompt,
        max_context_tokens=settings.max_new_tokens + recipe.data.sequence_tokens,
        drafts=settings.drafts,
        record_experts=settings.replay_routing,
    )
    reference = None
    if settings.kl_weight > 0:
        start = stage.before()
        assert start is not None, "the stage's model came from it"
        reference = load_model(start, dtype=recipe.dtype, device=recipe.device)
    judge = None
    if settings.judge is not None:
        judge = Judge(settings)
        stage.run.update(stage.name, {"judge": judge.described})
    rollouts = Rollouts(engine, environments, recipe.levels, settings, recipe.seed, stage.meter, recipe.efforts, judge)
    optimiser = optimiser_of(settings, recipe.seed)
    before = stage.measured_before(lambda: evaluate(model)) if settings.start is not None else {}
    latest: dict[str, float] = {}
    rule = agreement_of(settings, recipe.dtype)

    def validate() -> dict[str, float]:
        rule.check(stage.log.read(stage.name))
        latest.clear()
        latest.update(evaluate(model))
        return latest

    objective = objective_of(settings, reference)
    with ExitStack() as at_end:
        batches = _batches(model, rollouts, engine, objective, at_end)
        trainer = stage.fit(model, objective, batches, {"validate": validate}, optimiser)
    worst = rule.check(stage.log.read(stage.name))
    samples = trainer.done * settings.prompts_per_step * settings.samples_per_prompt
    figures: dict[str, Any] = {"steps": trainer.done, "samples": samples, **worst}
    if settings.refill:
        del figures["samples"]  # how many were drawn differs from step to step
    if settings.start is not None:
        after = latest or validate()  # nothing is left to do where the last step was saved, but not recorded
        _tell(before, after, settings.development_problems)
        figures |= after
    return figures


def objective_of(settings: GrpoSettings, reference: Transformer | None = None) -> Grpo:
    """Return the objective that settings ask for.

    Args:
        settings: of the stage.
        reference: the model that KL is measured to; None: none.
    """
    form = form_of(settings)
    return Grpo(
        form.clip_low,
        form.clip_high,
        settings.temperature,
        settings.kl_weight,
        reference,
        ratio=form.ratio,
        average=form.average,
        longest=settings.max_new_tokens,
        off_policy=settings.off_policy or (STALE_OFF_POLICY if settings.staleness else None),
        most_logits=settings.most_logits,
        stale=settings.staleness > 0,
    )


def _batches(
    model: Transformer, rollouts: Rollouts, pool: EnginePool, objective: Grpo, at_end: ExitStack
) -> Callable[[int], GroupBatch]:
    """Return where each step's batch comes from: this process or other machines, in turn with learning or meanwhile."""
    settings = rollouts.settings
    cluster = None
    if settings.cluster:
        sides = COPIES if settings.staleness else 1
        where = {"workers": settings.cluster, "address": settings.cluster_address}
        cluster = Cluster(model, pool.tokenizer, **where, sides=sides, options=pool.options)
        at_end.callback(cluster.close)
    if not settings.staleness:
        return rollouts.batch if cluster is None else _from_afar(model, rollouts, cluster)
    plain = replace(objective, kl_weight=0.0, reference=None, off_policy=None, stale=False)

    @torch.no_grad()
    def check(snapshot: Transformer, batch: GroupBatch) -> dict[str, float]:
        metrics = plain(snapshot, batch.to(snapshot.device)).metrics
        return {name: metrics[name] for name in ("logprob_gap", "routing_agreement") if name in metrics}

    def seat(snapshot: Transformer, condition: threading.Condition, number: int) -> Seat:
        if cluster is not None:
            return cluster.side(snapshot, condition, number)
        return SharedEngine(Engine(snapshot, pool.tokenizer, **pool.options), condition)

    stream = Stream(model, rollouts, seat, staleness=settings.staleness, check=check, steps=settings.steps)
    at_end.callback(stream.close)
    return stream.batch


def _from_afar(model: Transformer, rollouts: Rollouts, cluster: Cluster) -> Callable[[int], GroupBatch]:
    """Return rollouts by a cluster's workers, which get the weights as they are before each step."""
    side = cluster.side(copy_of(model), threading.Condition())
    remote = replace(rollouts, engine=side)

    def batch(step: int) -> GroupBatch:
        side.take(model)
        return remote.batch(step)

    return batch


def _tell(before: Mapping[str, float], after: Mapping[str, float], problems: int) -> None:
    for name, share in after.items():
        task = name.removeprefix("heldout_")
        say(f"  {task}: {before[name]:.1%} before, {share:.1%} after, of {problems} problems that no step has seen")
