"""Distill stage: a student learns its teachers' whole distributions, on their replies or on its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leanseek.checkpoint.directory import load_model
from leanseek.data.traces import Example, TraceBatches, traces
from leanseek.engine.pool import EnginePool
from leanseek.engine.request import SamplingParams
from leanseek.envs.environment import Environment, Problem
from leanseek.errors import ConfigError
from leanseek.evals.attempts import attempt
from leanseek.model.count import sampling_parts
from leanseek.model.transformer import Transformer
from leanseek.rl.collect import teacher_folder
from leanseek.rl.rollouts import ROLLOUT_SEED
from leanseek.sections.distillation import DistillSettings
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.tokenizer import Tokenizer
from leanseek.train.objectives.distill import Distill, Taught, TaughtBatch
from leanseek.train.stage import Stage
from leanseek.train.trainer import Meter


def distill(
    stage: Stage, environments: Sequence[Environment], evaluate: Callable[[Transformer], dict[str, float]]
) -> dict[str, Any]:
    """Bring a student's distributions near its teachers'; return the stage's figures.

    Args:
        stage: of a run, of kind distill.
        environments: tasks that prompts are drawn from.
        evaluate: model -> accuracy per task, shown on the way.
    Raises:
        ConfigError: no teacher, a task that none teaches, or a teacher with another tokenizer.
    """
    recipe = stage.run.recipe
    settings = recipe.settings_of(stage.name, DistillSettings)
    model, teachers = stage.model(), _teachers(stage, settings)
    who = _who(stage, settings, environments)
    batches: Callable[[int], TaughtBatch]
    if settings.method == "logits":
        batches = _given(stage, settings, environments)
    else:
        engine = EnginePool(
            model,
            stage.tokenizer,
            workers=stage.workers,
            max_batch=settings.prompts_per_step * settings.samples_per_prompt,
            max_context_tokens=settings.max_new_tokens + recipe.data.sequence_tokens,
        )
        own = Own(engine, environments, recipe.levels, settings, recipe.seed, stage.meter, who, recipe.efforts)
        batches = own.batch
    objective = Distill(
        teachers,
        "forward" if settings.method == "logits" else "reverse",
        settings.temperature,
        settings.most_logits,
    )
    latest: dict[str, float] = {}

    def validate() -> dict[str, float]:
        latest.clear()
        latest.update(evaluate(model))
        return latest

    trainer = stage.fit(model, objective, batches, {"validate": validate})
    return {"steps": trainer.done, "teachers": len(teachers), **(latest or validate())}


@dataclass(frozen=True)
class Own:
    """Makes a batch of the student's own replies for each step; the same step and weights always give the same one.

    Args:
        engine: on the student.
        environments: tasks, taken in turn.
        levels: environment name -> levels used; default: all.
        settings: of the stage.
        seed: of problems and samples.
        meter: sampling is charged to it.
        who: task -> number of its teacher.
        efforts: of which each prompt asks for one; empty: none is asked for.
    """

    engine: EnginePool
    environments: Sequence[Environment]
    levels: Mapping[str, Sequence[int]]
    settings: DistillSettings
    seed: int
    meter: Meter
    who: Mapping[str, int]
    efforts: Sequence[str] = ()

    def batch(self, step: int) -> TaughtBatch:
        """Let the student reply to a step's problems; right or wrong, its teacher says what it would have."""
        settings, each = self.settings, self.settings.samples_per_prompt
        params = SamplingParams(
            max_tokens=settings.max_new_tokens,
            n=each,
            seed=(self.seed * 1_000_003 + step) * settings.prompts_per_step * each,
        )
        named = {e.name: e for e in self.environments}
        drawn = attempt(self.engine, self._problems(step), params, environments=named, efforts=self.efforts)
        lengths = [len(one.output.token_ids) for one in drawn]
        prompts = [len(one.prompt_ids) for one in drawn[::each]]
        replies = [lengths[at : at + each] for at in range(0, len(drawn), each)]
        self.meter.tokens += sum(prompts) + sum(lengths)
        for part, flops in sampling_parts(self.engine.config, prompts, replies).items():
            self.meter.add_flops(flops, part=part)
        taught = []
        for one in drawn:
            ids = one.output.token_ids
            if one.output.error is None and ids:
                own = one.sampled if one.sampled is not None else [True] * len(ids)
                learnt = [*[False] * len(one.prompt_ids), *own]
                taught.append(Taught(([*one.prompt_ids, *ids], learnt), self.who[one.problem.environment]))
        count = max(len(drawn), 1)
        metrics = {"correct": sum(one.correct for one in drawn) / count, "length": sum(lengths) / count}
        for name in named:
            right = [float(one.correct) for one in drawn if one.problem.environment == name]
            if right:
                metrics[f"correct_{name}"] = sum(right) / len(right)
        return TaughtBatch(taught, metrics)

    def _problems(self, step: int) -> list[Problem]:
        seed = ROLLOUT_SEED + self.seed * 1_000_003 + step
        sources = [e.problems("train", seed, self.levels.get(e.name)) for e in self.environments]
        turns = itertools.islice(itertools.cycle(sources), self.settings.prompts_per_step)
        return [next(source) for source in turns]


def _given(
    stage: Stage, settings: DistillSettings, environments: Sequence[Environment]
) -> Callable[[int], TaughtBatch]:
    """Return batches of given replies, shuffled anew in each pass; the first teacher teaches them all."""
    recipe = stage.run.recipe
    examples: list[Example]
    if settings.traces is not None:
        examples = stage.conversations(settings.traces)
    else:
        chat = ChatFormat(stage.tokenizer)
        count = settings.traces_per_environment
        examples = traces(
            chat,
            environments,
            count,
            levels=recipe.levels,
            seed=recipe.seed,
            hasty=0.0,
            efforts=recipe.efforts,
        )
    batches = TraceBatches(examples, settings.batch_sequences, recipe.seed)
    return lambda step: TaughtBatch([Taught(example) for example in batches.chosen(step)])


def _teachers(stage: Stage, settings: DistillSettings) -> list[Transformer]:
    """Load the teachers, and refuse those that read another tokenizer's tokens."""
    recipe = stage.run.recipe
    if not settings.teachers:
        raise ConfigError(f"{stage.name} has no teacher: give stages or model folders as distill.teachers")
    if settings.method == "logits" and len(settings.teachers) > 1:
        raise ConfigError(
            f"{stage.name}: logits come from one teacher, got {len(settings.teachers)}; on_policy has many"
        )
    found = []
    for given in settings.teachers:
        folder = teacher_folder(stage.run, given, stage.name)
        if Tokenizer.load(folder).digest_text() != stage.tokenizer.digest_text():
            raise ConfigError(
                f"the teacher {given} has another tokenizer than the student, so their distributions are over "
                "different tokens; text can be learnt from any teacher: leanseek distill --method traces"
            )
        teacher = load_model(folder, dtype=recipe.dtype, device=recipe.device).eval()
        found.append(teacher.requires_grad_(False))
    return found


def _who(stage: Stage, settings: DistillSettings, environments: Sequence[Environment]) -> dict[str, int]:
    """Return each task's teacher: the last that had it as a task of its own, else the last one that knows them all."""
    recipe = stage.run.recipe
    who: dict[str, int] = {}
    for environment in environments:
        for general in (True, False):
            for number, given in enumerate(settings.teachers):
                own = recipe.stages[given].environments if given in recipe.stages else ()
                if (not own) if general else (environment.name in own):
                    who[environment.name] = number
        if environment.name not in who:
            raise ConfigError(
                f"{stage.name}: none of its teachers ({', '.join(settings.teachers)}) had {environment.name}"
            )
    return who
