"""Evaluation: what each stage's model can do, on the same held-out problems, with samples side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from leanseek.checkpoint.directory import load_model
from leanseek.engine.pool import EnginePool
from leanseek.envs.environment import Environment
from leanseek.envs.worlds.world import World
from leanseek.errors import TaskError
from leanseek.evals.acceptance import acceptance
from leanseek.evals.accuracy import Accuracy, evaluate
from leanseek.evals.attempts import Attempt, is_sound
from leanseek.log import progress, say
from leanseek.messages import Message
from leanseek.model.count import causal_pairs, forward_parts, mtp_flops, sampling_parts
from leanseek.model.transformer import Transformer
from leanseek.run import Run
from leanseek.tokens.tokenizer import Tokenizer
from leanseek.train.trainer import Meter

# Held-out problems per task whose replies are kept to be looked at.
SHOWN = 6
# Problems per task whose replies are kept at every look on the way.
WATCHED = 2
BATCH = 512


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Args:
        accuracy: environment -> figures of every model, as `summary.json` has them.
        samples: replies of every model to the same problems, for `samples.jsonl`.
        mtp_acceptance: of the last model; None without an MTP layer.
        films: environment -> model -> an episode as an animated WebP, early and late, where the task has pictures.
    """

    accuracy: dict[str, dict[str, Any]]
    samples: list[dict[str, Any]]
    mtp_acceptance: float | None
    films: dict[str, dict[str, bytes]] = field(default_factory=dict)


def evaluate_run(
    run: Run, tokenizer: Tokenizer, environments: Sequence[Environment], meter: Meter, workers: int = 1
) -> Evaluation:
    """Measure the models that a run's stages made, on held-out problems.

    Args:
        run: with checkpoints of the stages.
        tokenizer: of the run.
        environments: tasks.
        meter: sampling is charged to it.
        workers: threads that share the work.
    """
    recipe, settings = run.recipe, run.recipe.eval
    # The name that a stage's figures go by is its own, but the pretrained model is the base.
    folders = {"base" if stage == "pretrain" else stage: run.latest(stage) for stage in recipe.line}
    found = {name: folder for name, folder in folders.items() if folder is not None}
    results: dict[str, dict[str, Accuracy]] = {e.name: {} for e in environments}
    accepted: float | None = None
    total = len(found) * len(environments) * settings.problems * (1 + settings.samples)
    with progress(total, "evaluation, replies") as bar:
        for name, folder in found.items():
            model = load_model(folder, dtype=recipe.dtype, device=recipe.device)
            limit = settings.max_new_tokens + recipe.data.sequence_tokens
            engine = EnginePool(model, tokenizer, workers=workers, max_batch=BATCH, max_context_tokens=limit)
            for environment in environments:
                before = bar.done
                with meter.timed("replies"):
                    result = evaluate(
                        engine,
                        environment,
                        problems=settings.problems,
                        samples=settings.samples,
                        seed=recipe.seed,
                        levels=recipe.levels.get(environment.name),
                        max_new_tokens=settings.max_new_tokens,
                        effort=recipe.efforts[-1] if recipe.efforts else None,
                        on_progress=lambda n, before=before: bar.advance(before + n - bar.done),  # type: ignore[misc]
                    )
                results[environment.name][name] = result
                bar.say(f"  {environment.name}, {name}: {result.greedy}")
                _charge(model, result, settings.samples, meter)
            if name == list(found)[-1]:
                with meter.timed("drafts"):
                    accepted = _accepted(model, [by_model[name] for by_model in results.values()], meter)
    accuracy = {task: _figures(by_model) for task, by_model in results.items()}
    samples = [
        _sample(environment, name, result.attempts[i])
        for environment in environments
        for i in range(SHOWN)
        for name, result in results[environment.name].items()
        if i < len(result.attempts)
    ]
    films = {e.name: found for e in environments if (found := _films(e, results[e.name]))}
    return Evaluation(accuracy, samples, accepted, films)


def development_accuracy(
    model: Transformer,
    tokenizer: Tokenizer,
    environments: Sequence[Environment],
    *,
    problems: int,
    levels: Mapping[str, Sequence[int]],
    seed: int,
    max_new_tokens: int,
    context_tokens: int,
    workers: int = 1,
    effort: str | None = None,
    on_attempt: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, float]:
    """Return each task's greedy accuracy on the development split, as heldout_<task>.

    Args:
        model: measured as it is now.
        problems: per task.
        seed: of the problems.
        context_tokens: longest prompt and reply together.
        workers: threads that share the work.
        effort: that the prompts ask for.
        on_attempt: called with the first WATCHED replies of each task, as a page shows them.
    """
    engine = EnginePool(model, tokenizer, workers=workers, max_batch=problems, max_context_tokens=context_tokens)
    found = {}
    for environment in environments:
        result = evaluate(
            engine,
            environment,
            problems=problems,
            samples=0,
            seed=seed,
            split="development",
            levels=levels.get(environment.name),
            max_new_tokens=max_new_tokens,
            effort=effort,
        )
        found[f"heldout_{environment.name}"] = result.greedy.share
        for one in result.attempts[:WATCHED] if on_attempt is not None else ():
            on_attempt(_sample(environment, "", one))
    return found


def _figures(by_model: Mapping[str, Accuracy]) -> dict[str, Any]:
    """Return one task's part of `summary.json`'s accuracy."""
    one = {name: result.to_dict() for name, result in by_model.items()}
    return {
        **{name: figures["greedy"] for name, figures in one.items()},
        "n": max((figures["n"] for figures in one.values()), default=0),
        **{
            key: {name: figures[key] for name, figures in one.items()}
            for key in ("interval", "pass_at_k", "pass_at_k_interval", "sound", "formed", "levels", "length")
        },
    }


def _sample(environment: Environment, name: str, attempt: Attempt) -> dict[str, Any]:
    problem = attempt.problem
    return {
        "stage": name,
        "environment": problem.environment,
        "level": problem.level,
        "prompt": problem.prompt,
        "reasoning": attempt.reply.reasoning_content if not attempt.messages else _told(attempt.messages),
        "answer": attempt.reply.content,
        "gold": str(problem.data.get("answer", "")),
        "correct": attempt.correct,
        "sound": is_sound(environment, attempt),
    }


def _films(environment: Environment, by_model: Mapping[str, Accuracy]) -> dict[str, bytes]:
    """Return a film of the first model that was taught to reply, and one of the last, at the same problem.

    It is the first that the last one solves and the early one does not; else one that the last solves; else the first.
    """
    names = [name for name in by_model if name != "base"] or list(by_model)  # which has never seen a conversation
    pairs = list(zip(*(by_model[names[at]].attempts for at in (0, -1)), strict=True)) if names else []
    if not isinstance(environment, World) or not pairs:
        return {}
    early, late = max(pairs, key=lambda pair: pair[1].correct * (2 - pair[0].correct))
    try:
        films = {name: _film(environment, one) for name, one in {names[0]: early, names[-1]: late}.items()}
    except TaskError as error:
        say(f"  no film of {environment.name}: {error}")
        return {}
    return {name: film for name, film in films.items() if film is not None}


def _film(world: World, attempt: Attempt) -> bytes | None:
    replies = [message for message in attempt.messages if message.role == "assistant"] or [attempt.reply]
    return world.film(attempt.problem, world.calls_of(replies))


def _told(messages: Sequence[Message]) -> str:
    """Return a conversation up to its last answer as lines."""
    lines = []
    for place, message in enumerate(messages):
        if message.role != "assistant":
            lines.append(f"[{message.role}] {message.content}")
            continue
        lines.append(message.reasoning_content or "")
        lines += [f"[{call.name}] {call.arguments}" for call in message.tool_calls]
        if place < len(messages) - 1:
            lines.append(message.content)
    return "\n".join(line for line in lines if line)


def _accepted(model: Transformer, results: Sequence[Accuracy], meter: Meter) -> float | None:
    """Return the share of right drafts on the greedy replies, and charge the reading of them."""
    replies = [
        (a.prompt_ids, a.output.token_ids) for one in results for a in one.attempts if len(a.output.token_ids) > 1
    ]
    share = acceptance(model, replies)
    if share is None:
        return None
    lengths = [len(prompt) + len(reply) for prompt, reply in replies]
    tokens, pairs = sum(lengths), causal_pairs(lengths)
    for part, flops in forward_parts(model.config, tokens=tokens, pairs=pairs, head_tokens=0).items():
        meter.add_flops(flops, part=part)
    meter.add_flops(mtp_flops(model.config, tokens=tokens, pairs=pairs, head_tokens=share.count), part="mtp")
    return share.share


def _charge(model: Transformer, result: Accuracy, samples: int, meter: Meter) -> None:
    """Charge the replies; sampled ones, whose lengths are not kept, count as long as the greedy ones."""
    prompts = [len(a.prompt_ids) for a in result.attempts]
    replies = [[len(a.output.token_ids)] * (1 + samples) for a in result.attempts]
    meter.tokens += sum(prompts) * 2 + sum(map(sum, replies))
    for part, flops in sampling_parts(model.config, prompts, replies).items():
        meter.add_flops(flops, part=part)
