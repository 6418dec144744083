"""Effort: in how many tokens a model answers, and how often rightly, when its prompt asks for little thinking or much.

Runs of the recipe effort-laptop, one for each seed, their last models; held-out problems of every task, each asked at
low, high and max effort, answered greedily.

    python bench/laptop.py --recipe effort-laptop --seeds 0 --base runs/laptop-seed0
    python bench/effort.py --runs runs/effort-laptop-seed0
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rows import arguments, publish, row


def main() -> None:
    parser = arguments((__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, nargs="+", default=[Path("runs/effort-laptop")], help="run folders")
    parser.add_argument("--problems", type=int, default=256, help="of each task")
    options = parser.parse_args()
    found = [measured(folder, 8 if options.quick else options.problems) for folder in options.runs]
    *fewer, most = found[0]
    for effort in fewer:
        shown = row(
            f"a reply at {effort} effort against {most}",
            "tokens",
            [mean(one[effort], "length") for one in found],
            [mean(one[most], "length") for one in found],
            less_is_better=True,
            accuracy={
                "ours": [mean(one[effort], "greedy") for one in found],
                "peer": [mean(one[most], "greedy") for one in found],
            },
            tasks={"ours": [one[effort] for one in found], "peer": [one[most] for one in found]},
        )
        publish("effort", shown, options)


def measured(folder: Path, problems: int) -> dict[str, dict[str, Any]]:
    """Return, for each effort that a run's model was trained with, from low to max, the figures of each task."""
    from leanseek.checkpoint.directory import load_model
    from leanseek.engine.pool import EnginePool
    from leanseek.envs.environment import load_environment
    from leanseek.evals.accuracy import evaluate
    from leanseek.kernels.threads import share_out
    from leanseek.run import Run, model_folder
    from leanseek.tokens.tokenizer import Tokenizer

    recipe, model = Run.open(folder).recipe, model_folder(folder)
    if len(recipe.efforts) < 2:
        raise SystemExit(f"{folder} was trained with the efforts {recipe.efforts}: two or more are needed")
    limit = recipe.grpo.max_new_tokens
    engine = EnginePool(
        load_model(model),
        Tokenizer.load(model),
        workers=share_out(None, "cpu"),
        max_context_tokens=limit + recipe.data.sequence_tokens,
    )
    asked = {"problems": problems, "samples": 0, "max_new_tokens": limit, "seed": recipe.seed}
    return {
        effort: {
            task: evaluate(
                engine, load_environment(task), levels=recipe.levels.get(task), effort=effort, **asked
            ).to_dict()
            for task in recipe.environments
        }
        for effort in recipe.efforts
    }


def mean(tasks: dict[str, Any], figure: str) -> float:
    """Return the tasks' mean of a figure."""
    return statistics.mean(one[figure] for one in tasks.values())


if __name__ == "__main__":
    main()
