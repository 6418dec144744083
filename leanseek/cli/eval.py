"""leanseek eval: how many held-out problems a model solves, and whether its thinking is sound."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from leanseek import variables
from leanseek.cost.energy import EnergyMeter, describe_meter
from leanseek.envs.environment import environments, load_environment
from leanseek.errors import UsageError
from leanseek.log import progress, say
from leanseek.run import Run, model_folder
from leanseek.units import format_joules

if TYPE_CHECKING:
    from leanseek.evals.accuracy import Accuracy

BATCH = 256


def eval_(
    model: Path,
    *,
    env: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    level: Annotated[tuple[int, ...], Parameter(consume_multiple=True)] = (),
    problems: int = 512,
    samples: int = 4,
    seed: int = 0,
    max_new_tokens: int = 96,
    weights: Literal["fp32", "bf16", "fp8", "int8", "int4"] = "fp32",
    device: Literal["cpu", "cuda"] = "cpu",
    json: bool = False,
) -> None:
    """Measure a model on held-out problems: the most likely reply, and pass@k of sampled ones, with 95% intervals.

    Example: leanseek eval runs/laptop --env running_total --problems 200

    Args:
        model: A run folder (its latest checkpoint) or a model folder.
        env: Tasks; without it, the run's own, or all for a model folder.
        level: Difficulties; without it, the run's own, or all.
        problems: Held-out problems of each task; the same seed gives the same ones.
        samples: Sampled replies per problem; 0 measures the most likely reply alone.
        seed: Of the problems and of the samples.
        max_new_tokens: Longest reply.
        weights: What the weights are kept in; fp8: as an FP8 folder has them; int8 and int4 are packed at the first
            time, and kept in a cache.
        device: What computes.
        json: Print the figures as JSON.
    """
    for name, value, least in (
        ("problems", problems, 1),
        ("samples", samples, 0),
        ("max-new-tokens", max_new_tokens, 1),
    ):
        if value < least:
            raise UsageError(f"--{name} {value}: at least {least} is needed")
    folder = model_folder(model)
    recipe = Run.open(model).recipe if Run.is_run(model) else None
    names = env or (recipe.environments if recipe is not None else tuple(environments(adapters=False)))
    tasks = [load_environment(name) for name in names]
    # Here, so that a wrong folder or task is told at once and --help does not wait for torch.
    import torch

    from leanseek.engine.engine import Engine
    from leanseek.evals.accuracy import evaluate

    if (threads := variables.threads()) is not None:
        torch.set_num_threads(threads)
    say(f"measuring {folder}")
    engine = Engine.load(folder, weights=weights, device=device, max_batch=BATCH)
    meter = EnergyMeter(device, gpu_name=torch.cuda.get_device_name() if device == "cuda" else None)
    meter.start()
    results = []
    for task in tasks:
        with progress(problems * (1 + samples), task.name) as bar:
            levels = level or (recipe.levels.get(task.name) if recipe is not None else None)
            result = evaluate(
                engine,
                task,
                problems=problems,
                samples=samples,
                seed=seed,
                levels=levels,
                max_new_tokens=max_new_tokens,
                on_progress=lambda done, bar=bar: bar.advance(done - bar.done),  # type: ignore[misc]
            )
        results.append(result)
        if not json:
            print("\n".join(lines(result)), flush=True)
    joules, tokens = meter.read_joules(), sum(result.tokens for result in results)
    meter.stop()
    if json:
        energy = {"joules": joules, "tokens": tokens, "meter": meter.meter}
        print(
            json_format.dumps(
                {"model": str(folder), "tasks": [result.to_dict() for result in results], "energy": energy}, indent=2
            )
        )
    else:
        each = f", {format_joules(joules / tokens)} a token of the {tokens:,} sampled" if tokens else ""
        print(f"energy: {format_joules(joules)}{each}; {describe_meter(meter.meter)}")


def lines(result: Accuracy) -> list[str]:
    """Return a task's figures as lines to read."""
    shown = [f"{result.environment}: {result.greedy} of held-out problems solved by the most likely reply"]
    shown += [f"  pass@{k}: {one}" for k, one in result.pass_at_k.items()]
    shown.append("  by level: " + ", ".join(f"{level}: {one.share:.1%}" for level, one in result.levels.items()))
    if result.sound.count:
        shown.append(f"  thinking right line by line: {result.sound} of the right answers")
    return shown
