"""Is the plan right? `leanseek plan RECIPE` against the ledger of the run, and the plan of `leanseek bench` against it.

And how long do a plan and a calibration take: against the second and the ten seconds that they may?

Virtual cores change their speed with what a neighbour does, so each row has two ratios: the plain one, and `by_pulse`,
where what was planned is of a machine as fast as it was during the work, by the product that `leanseek.pulse` times.
Of decoding and prompts a calibration and all pieces of work are measured in turn, `--repeats` times; `planned` are the
plans by each calibration. During a run a thread takes pulses of a few milliseconds of processor time, once a second.

The run is made anew in a folder of its own; with `--run FOLDER` it and its rates stay there, and a run that was cut
short goes on where it stopped, as planned. `--only bench`, `--only stages` and `--only answers` do one of them;
`--shorter 5` takes a fifth of every stage's steps.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from rows import arguments, publish, repeats, row, seconds_of

from leanseek.checkpoint.directory import empty_model
from leanseek.cost.ledger import Ledger
from leanseek.cost.rates import EngineRates, Rates, load_rates, save_rates
from leanseek.drawing import decode_speed, read_speed
from leanseek.evals.speed import decode_row, prefill_row
from leanseek.kernels.threads import available_threads
from leanseek.model.config import ModelConfig, load_preset
from leanseek.model.initialise import initialise
from leanseek.pulse import Pulse
from leanseek.run import Run
from leanseek.settings import load_recipe
from leanseek.speed import measure_rates

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
    if options.only in ("", "answers"):
        with tempfile.TemporaryDirectory() as temporary:
            os.environ["XDG_CONFIG_HOME"] = temporary
            subprocess.run([sys.executable, "-m", "leanseek", "plan", "--calibrate"], check=True, **QUIETLY)
            answers(options)
    if options.only in ("", "bench"):
        speeds(options)
    if options.only in ("", "stages") and not options.quick:
        with tempfile.TemporaryDirectory() as temporary:
            stages(options.recipe, options.run or Path(temporary), options)


def answers(options: Any) -> None:
    """Publish how long `leanseek plan` takes, from its start to its end."""
    for asked, limit_s in ANSWERS:
        call = partial(subprocess.run, [sys.executable, "-m", "leanseek", "plan", *asked], check=True, **QUIETLY)
        times = [seconds_of(call) for _ in range(repeats(options))]
        found = row(f"leanseek plan {' '.join(asked)}", "s", times, [limit_s], less_is_better=True)
        publish("plan", found, options)


@dataclass
class Compared:
    """A piece of work that is planned and done, several times.

    Args:
        together: it is done on all cores.
        plan: tokens a second by a calibration.
        measure: tokens a second.
    """

    together: bool
    plan: Callable[[EngineRates], float]
    measure: Callable[[], dict[str, Any]]
    planned: list[float] = field(default_factory=list)
    actual: list[float] = field(default_factory=list)
    by_pulse: list[float] = field(default_factory=list)
    work: str = ""

    def take(self, rates: Rates, pulse: Pulse, threads: int) -> None:
        """Plan and do it once more."""
        torch.set_num_threads(threads)
        before = pulse.seconds()
        found = self.measure()
        around = [*before, *pulse.seconds()]
        self.work = f"leanseek bench {found['work']}, {threads} threads"
        self.planned.append(self.plan(rates.alone if self.together else rates.engine))
        self.actual.append(found["value"])
        half = len(before)
        then_s = fmean(max(side) if self.together else fmean(side) for side in (around[:half], around[half:]))
        slower = then_s / (rates.slower_pulse_s if self.together else rates.pulse_s)
        self.by_pulse.append(self.planned[-1] / slower / self.actual[-1])


def speeds(options: Any) -> None:
    """Publish what `leanseek bench decode` and `prefill` measure of the laptop's shape, beside what was planned."""
    config, threads = load_preset("laptop"), available_threads()
    model, pulse = initialise(empty_model(config, dtype="float32"), 0).eval(), Pulse(threads)
    work: list[tuple[int, Compared]] = []
    for count in sorted({1, threads}):
        for batch, context in DECODE:
            plan = partial(_decoding, config, batch, context)
            drawing = partial(decode_row, model, batch=batch, context=context, tokens=TOKENS, limits=None, repeats=1)
            work.append((count, Compared(count > 1, plan, drawing)))
        for tokens in PREFILL:
            plan = partial(_reading, config, tokens)
            reading = partial(prefill_row, model, tokens=tokens, limits=None, flops_per_token=1.0, repeats=1)
            work.append((count, Compared(count > 1, plan, reading)))
    for _ in range(repeats(options)):
        rates = measure_rates()
        for count, one in work * (1 if options.quick else 2):
            one.take(rates, pulse, count)
    within = 0
    for _, one in work:
        found = row(one.work, "tokens/s", one.planned, one.actual, within=WITHIN, by_pulse=_told(one.by_pulse))
        within += abs(found["by_pulse"]["median"] - 1) <= WITHIN
        publish("plan", found, options)
    print(f"{within} of {len(work)} within {WITHIN:.0%} by their pulses")


def _decoding(config: ModelConfig, batch: int, context: int, own: EngineRates) -> float:
    return decode_speed(config, own, batch, context, TOKENS)


def _reading(config: ModelConfig, tokens: int, own: EngineRates) -> float:
    return read_speed(config, own, tokens)


def _told(ratios: Sequence[float]) -> dict[str, Any]:
    return {"median": round(median(ratios), 4), "samples": [round(one, 4) for one in ratios]}


class Watch(threading.Thread):
    """Takes the machine's pulse once a second, in processor time: other work has the cores meanwhile."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._pulse, self._ended = Pulse(available_threads(), time.thread_time), threading.Event()
        self.found: list[tuple[float, float]] = []

    def run(self) -> None:
        """Take pulses until `end`."""
        while not self._ended.wait(1.0):
            self.found.append((time.time(), max(self._pulse.seconds())))

    def end(self) -> None:
        """Take no more."""
        self._ended.set()
        self.join()

    def mean_s(self, since: float, until: float) -> float:
        """Return the mean pulse of the slower core between two moments."""
        return fmean([pulse_s for at, pulse_s in self.found if since <= at <= until] or [math.nan])


def stages(recipe: str, folder: Path, options: Any) -> None:
    """Make a run, which plans itself first, and publish each stage's row."""
    os.environ["XDG_CONFIG_HOME"] = str(folder)
    if (rates := load_rates()) is None:
        rates = measure_rates()
        save_rates(rates)
    print(rates, flush=True)
    make, known = [sys.executable, "-m", "leanseek", "make", recipe, "--run", str(folder / "run")], load_recipe(recipe)
    if options.shorter > 1:
        for stage in ("pretrain", "sft", "grpo"):
            make += [f"--{stage}.steps", str(max(1, getattr(known, stage).steps // options.shorter))]
    watch = Watch()
    watch.start()
    subprocess.run(make, check=True)
    watch.end()
    name = known.name if options.shorter == 1 else f"{known.name}, {options.shorter} times fewer steps"
    run = Run.open(folder / "run")
    ledger = Ledger(run.ledger_path, 0.0)
    actual = ledger.totals()
    for stage, planned in run.summary["plan"].items():
        took = actual[stage]
        rows = [one for one in ledger.rows() if one["stage"] == stage]
        pulse_s = watch.mean_s(min(one["time_s"] - one["seconds"] for one in rows), max(one["time_s"] for one in rows))
        slower = pulse_s / rates.slower_pulse_s
        facts = {
            "tokens_planned": planned["tokens"],
            "tokens_actual": took["tokens"],
            "parts_planned": planned["parts"],
            "parts_actual": took.get("seconds_by_part", {}),
            "slower_than_calibrated": round(slower, 4),
            "by_pulse": round(took["seconds"] / (planned["seconds"] * slower), 4),
        }
        sides = [planned["seconds"]], [took["seconds"]]
        found = row(f"{name}: {stage}", "s", *sides, less_is_better=True, within=WITHIN, **facts)
        publish("plan", found, options)


if __name__ == "__main__":
    main()
