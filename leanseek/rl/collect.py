"""Traces stage: a teacher replies to training problems, and what is right is kept, line by line, as data for SFT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leanseek.checkpoint.directory import load_model
from leanseek.data.conversations import Conversations
from leanseek.engine.pool import EnginePool
from leanseek.engine.request import SamplingParams
from leanseek.envs.environment import Environment, Problem
from leanseek.errors import ConfigError, RunError
from leanseek.evals.attempts import Attempt, attempt, is_sound
from leanseek.log import progress
from leanseek.messages import Message, ToolSpec
from leanseek.model.count import sampling_parts
from leanseek.rl.endpoint import Endpoint
from leanseek.rl.rejection import best, training_problems
from leanseek.run import Run, model_folder
from leanseek.sections.distillation import TracesSettings
from leanseek.tokens.effort import effort_of, with_effort
from leanseek.tokens.tokenizer import Tokenizer
from leanseek.train.stage import Stage

# Problems whose replies are drawn together, and written down before the next ones are.
TOGETHER = 128

Reply = Callable[[Sequence[Problem], int], Sequence[Attempt]]


def collect(stage: Stage, environments: Sequence[Environment]) -> dict[str, Any]:
    """Draw a teacher's replies and keep the best right ones; a stage that was stopped goes on where it was.

    Args:
        stage: of a run, of kind traces.
        environments: tasks whose training problems are asked.
    Raises:
        ConfigError: a task of several turns, of a server.
        RunError: the teacher is not there.
        ServerError: the teacher is a server that does not answer.
    """
    recipe = stage.run.recipe
    settings = recipe.settings_of(stage.name, TracesSettings)
    named = {environment.name: environment for environment in environments}
    problems = training_problems(environments, settings.problems, levels=recipe.levels, seed=recipe.seed)
    file = Conversations(stage.run.traces_path(stage.name))
    known = file.keys()
    asked = [number for number, problem in enumerate(problems) if _key(problem) not in known]
    if asked:
        described, reply = _teacher(stage, settings, named)
        file.describe(described)
        with progress(len(problems), f"{stage.name}, problems") as bar:
            bar.start_at(len(problems) - len(asked))
            size = TOGETHER if described["teacher"] == "model" else settings.at_once
            for at in range(0, len(asked), size):
                numbers = asked[at : at + size]
                for first, last in _runs(numbers):
                    drawn = reply(problems[first:last], first)
                    for i, problem in enumerate(problems[first:last]):
                        start = named[problem.environment].start(problem)
                        prompt = with_effort(start.messages, effort_of(problem.key, recipe.efforts))
                        replies = drawn[i * settings.samples : (i + 1) * settings.samples]
                        _keep(file, named[problem.environment], problem, (prompt, start.tools), replies, settings)
                bar.advance(len(numbers))
    kept = file.kept()
    return {
        "problems": len(problems),
        "replies": len(problems) * settings.samples,
        "kept": len(kept),
        "provenance": file.provenance(),
    }


def _teacher(stage: Stage, settings: TracesSettings, named: dict[str, Environment]) -> tuple[dict[str, Any], Reply]:
    """Return who replies, and how it is asked."""
    recipe, run = stage.run.recipe, stage.run
    facts = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "temperature": settings.temperature,
        "max_new_tokens": settings.max_new_tokens,
        "samples": settings.samples,
    }
    given = settings.teacher
    if given is not None and given.startswith(("http://", "https://")):
        for environment in named.values():
            if environment.multi_turn:
                raise ConfigError(f"{stage.name}: {environment.name} has several turns, and a server is asked once")
        endpoint = Endpoint(given, settings, named)
        about = {"url": endpoint.shown, "model": endpoint.model, "licence": settings.licence or "not stated"}
        return {"teacher": "server", **about, **facts}, endpoint.reply
    folder = teacher_folder(run, given or recipe.before(stage.name), stage.name)
    model = load_model(folder, dtype=recipe.dtype, device=recipe.device)
    longest = min(settings.max_new_tokens + recipe.data.sequence_tokens, model.config.max_position_embeddings)
    engine = EnginePool(
        model,
        Tokenizer.load(folder),
        workers=stage.workers,
        max_batch=TOGETHER * settings.samples,
        max_context_tokens=longest,
    )

    def reply(problems: Sequence[Problem], first: int) -> Sequence[Attempt]:
        params = SamplingParams(
            max_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            n=settings.samples,
            seed=(recipe.seed << 32) + first * settings.samples,
        )
        drawn = attempt(engine, problems, params, environments=named, efforts=recipe.efforts)
        replies = [
            [len(a.output.token_ids) for a in drawn[at : at + params.n]] for at in range(0, len(drawn), params.n)
        ]
        prompts = [len(one.prompt_ids) for one in drawn[:: params.n]]
        stage.meter.tokens += sum(prompts) + sum(map(sum, replies))
        for part, flops in sampling_parts(model.config, prompts, replies).items():
            stage.meter.add_flops(flops, part=part)
        return drawn

    of_a_run = folder.parent.name == "checkpoints" and folder.parent.parent != run.folder
    shown = f"{folder.parent.parent.name}/{folder.name}" if of_a_run else folder.name
    return {"teacher": "model", "model": shown, **facts}, reply


def teacher_folder(run: Run, given: str | None, name: str) -> Path:
    """Return the folder of a teacher: a stage's last checkpoint, a run's, or a model folder.

    Args:
        run: that has stages.
        given: a stage's name, or a path; None: the model that the run starts from.
        name: of the stage that wants it, for errors.
    Raises:
        RunError: the stage has left no checkpoint.
        CheckpointError: there is no such folder.
    """
    if given is None or (given == "pretrain" and run.recipe.grpo.start is not None):
        assert run.recipe.grpo.start is not None, "a line without one begins with pretraining"
        return Path(run.recipe.grpo.start)
    if given not in run.recipe.line:
        return model_folder(given)
    folder = run.latest(given)
    if folder is None:
        raise RunError(f"{run.folder} has no checkpoint of {given}, which teaches in {name}")
    return folder


def _keep(
    file: Conversations,
    environment: Environment,
    problem: Problem,
    asked: tuple[Sequence[Message], Sequence[ToolSpec]],
    attempts: Sequence[Attempt],
    settings: TracesSettings,
) -> None:
    prompt, tools = asked
    right = sum(one.correct for one in attempts)
    chosen = best(attempts, len(attempts), settings.easiest)
    if settings.sound:
        chosen = [one for one in chosen if is_sound(environment, one)]
    kept = [(*prompt, *(one.messages or (_clean(one.reply),))) for one in chosen[: settings.keep]]
    about = {"environment": problem.environment, "level": problem.level, "right": right, "of": len(attempts)}
    file.add(_key(problem), about, kept, tools)


def _clean(reply: Message) -> Message:
    return Message("assistant", reply.content.strip(), (reply.reasoning_content or "").strip())


def _key(problem: Problem) -> str:
    return f"{problem.environment}: {problem.key}"


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return [first, last) of each stretch of numbers that follow each other."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return found
