"""Is the plan right? `leanseek plan RECIPE` against the ledger of the run, and the plan of `leanseek bench` against it.

And how long do a plan and a calibration take: against the second and the ten seconds that they may?

The machine is calibrated first, so nothing else may run on it meanwhile. The run is made anew in a folder of its own;
with `--run FOLDER` it and its rates stay there, and a run that was cut short goes on where it stopped, as planned.
`--only bench`, `--only stages` and `--only answers` do one of them; `--shorter 5` takes a fifth of every stage's steps.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rows import arguments, publish, repeats, row, seconds_of

QUIETLY = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
# How far a plan may be off, as a share.
WITHIN = 0.15
TOKENS = 32
# Batches and contexts: some that the calibration takes too, and some between them.
DECODE = ((1, 16), (1, 256), (4, 64), (8, 64), (32, 64), (64, 64), (64, 256), (128, 128), (256, 64))
PREFILL = (64, 256, 512)
# What is asked, and the seconds in which it is to be answered.
V3 = ("deepseek-v3", "--on", "2048xh800")
ANSWERS = (
    ((*V3, "--tokens", "14.8T"), 1.0),
    ((*V3, "--tokens", "14.8T", "--layout", "pp=16,ep=64,schedule=dualpipe"), 1.0),
    (("deepseek-v3", "--on", "176xh800", "--serve"), 1.0),
    (("v3-671b-2048xh800",), 1.0),
    (("laptop",), 1.0),
    (("--calibrate",), 10.0),
)


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--recipe", default="laptop", help="name or path of a recipe")
    parser.add_argument("--shorter", type=int, default=1, help="take one step of so many")
    parser.add_argument("--run", type=Path, help="where the rates and the run are kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.run or Path(temporary)
        os.environ["XDG_CONFIG_HOME"] = str(folder)
        from leanseek.cost.rates import load_rates, save_rates
        from leanseek.speed import measure_rates

        if (rates := load_rates()) is None:
            rates = measure_rates(repeats=1 if options.quick else 3)
            save_rates(rates)
        print(rates, flush=True)
        if options.only in ("", "answers"):
            answers(options)
        if options.only in ("", "bench"):
            speeds(rates, options)
        if options.only in ("", "stages") and not options.quick:
            stages(options.recipe, folder / "run", options)


def answers(options: Any) -> None:
    """Publish how long `leanseek plan` takes, from its start to its end."""
    for asked, limit_s in ANSWERS:
        call = partial(subprocess.run, [sys.executable, "-m", "leanseek", "plan", *asked], check=True, **QUIETLY)
        times = [seconds_of(call) for _ in range(repeats(options))]
        found = row(f"leanseek plan {' '.join(asked)}", "s", times, [limit_s], less_is_better=True)
        publish("plan", found, options)


def speeds(rates: Any, options: Any) -> None:
    """Publish what `leanseek bench decode` and `prefill` measure of the laptop's shape, beside what was planned."""
    import torch

    from leanseek.checkpoint.directory import empty_model
    from leanseek.drawing import decode_speed, read_speed
    from leanseek.evals.speed import decode_row, prefill_row
    from leanseek.kernels.threads import available_threads
    from leanseek.model.config import load_preset
    from leanseek.model.initialise import initialise

    config, count = load_preset("laptop"), repeats(options)
    model = initialise(empty_model(config, dtype="float32"), 0).eval()

    def measured(threads: int, measure: Callable[[], dict[str, Any]], planned: float) -> None:
        torch.set_num_threads(threads)
        found = measure()
        work = f"leanseek bench {found['work']}, {threads} threads"
        publish("plan", row(work, "tokens/s", [planned], found["samples"], within=WITHIN), options)

    for threads in sorted({1, available_threads()}):
        own = rates.engine if threads == 1 else rates.alone
        for batch, context in DECODE:
            planned = decode_speed(config, own, batch, context, TOKENS)
            size = {"batch": batch, "context": context, "tokens": TOKENS}
            measured(threads, partial(decode_row, model, **size, limits=None, repeats=count), planned)
        for tokens in PREFILL:
            planned = read_speed(config, own, tokens)
            reading = partial(prefill_row, model, tokens=tokens, limits=None, flops_per_token=1.0, repeats=count)
            measured(threads, reading, planned)


def stages(recipe: str, folder: Path, options: Any) -> None:
    """Make a run, which plans itself first, and publish each stage's row."""
    from leanseek.cost.ledger import Ledger
    from leanseek.run import Run
    from leanseek.settings import load_recipe

    make, known = [sys.executable, "-m", "leanseek", "make", recipe, "--run", str(folder)], load_recipe(recipe)
    if options.shorter > 1:
        for stage in ("pretrain", "sft", "grpo"):
            make += [f"--{stage}.steps", str(max(1, getattr(known, stage).steps // options.shorter))]
    subprocess.run(make, check=True)
    name = known.name if options.shorter == 1 else f"{known.name}, {options.shorter} times fewer steps"
    run = Run.open(folder)
    actual = Ledger(run.ledger_path, 0.0).totals()
    for stage, planned in run.summary["plan"].items():
        took = actual[stage]
        facts = {
            "tokens_planned": planned["tokens"],
            "tokens_actual": took["tokens"],
            "parts_planned": planned["parts"],
            "parts_actual": took.get("seconds_by_part", {}),
        }
        sides = [planned["seconds"]], [took["seconds"]]
        found = row(f"{name}: {stage}", "s", *sides, less_is_better=True, within=WITHIN, **facts)
        publish("plan", found, options)


if __name__ == "__main__":
    main()
