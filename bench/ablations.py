"""Ablations of reinforcement learning, each part on against off, from the same SFT checkpoint, published win or lose.

Every side of "learning" is a short run of the laptop recipe's GRPO stage from one model folder, the seeds in turn: its
figure is the mean accuracy on held-out problems after the last step. "Drafts" times the same rollouts with and without
the MTP layer's drafts, in one process, in turn. "Staleness" times whole steps, drawn and learnt in turn against drawn
meanwhile; the machine's cores are the same for both, so that this shows what it costs where there is nothing to gain.
"Updates" counts what would travel to rollout workers after each step.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from process import stage
from rows import alternate, arguments, publish, repeats, row

ROOT = Path(__file__).resolve().parents[1]
# A quarter of the laptop recipe's step, so that three seeds of two sides take minutes.
SHORT = {"prompts_per_step": 16, "validate_every": 100_000, "checkpoint_every": 100_000}
OFF = 1e6  # a distance that no reply is beyond
# name -> (what both sides have, the part on, the part off)
LEARNING: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "routing replay, 4 epochs": ({"epochs": 4}, {"replay_routing": True}, {"replay_routing": False}),
    "V3.2's masks, staleness 4, top-p 0.95": (
        {"staleness": 4, "top_p": 0.95},
        {"off_policy": 0.5, "keep_sampling_mask": True},
        {"off_policy": OFF, "keep_sampling_mask": False},
    ),
}
# A laptop's rate, and one that models of billions of weights take.
UPDATES = (("float32", 4e-4), ("bfloat16", 4e-4), ("float32", 1e-6), ("bfloat16", 1e-6))
WATCHED = ("reward", "entropy", "clip_fraction", "off_policy_fraction", "stale_gap_mean", "routing_agreement")


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=None, help="SFT checkpoint (default: that of runs/laptop)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the learning runs")
    parser.add_argument("--steps", type=int, default=20, help="of the learning runs")
    parser.add_argument("--runs", type=Path, default=None, help="keep the learning runs here: finished ones are read")
    options = parser.parse_args()
    if options.model is None:
        options.model = max((ROOT / "runs" / "laptop" / "checkpoints").glob("sft-*"), default=None)
        if options.model is None:
            sys.exit("no SFT checkpoint: python -m leanseek make laptop, or --model FOLDER")
    if options.quick:
        options.steps, options.seeds = 2, [0]
    for name, sides in LEARNING.items():
        if options.only in name:
            publish("ablations", learning(name, *sides, options), options)
    for name, measure in (("drafts in rollouts", drafts), ("staleness 2", staleness)):
        if options.only in name:
            publish("ablations", measure(name, options), options)
    for dtype, lr in UPDATES:
        if options.only in "updates":
            publish("ablations", updates(dtype, lr, options), options)


def learning(
    name: str, both: Mapping[str, Any], on: Mapping[str, Any], off: Mapping[str, Any], options: Any
) -> dict[str, Any]:
    """Return the row of one part, on against off, over the seeds."""
    found: dict[str, list[dict[str, Any]]] = {"on": [], "off": []}
    for seed in options.seeds:
        for side, own in (("on", on), ("off", off)):
            kept = (
                None if options.runs is None else options.runs / f"{name.split(',')[0]} {side} {seed}".replace(" ", "-")
            )
            found[side].append(run(options, {**both, **own}, seed, options.steps, kept=kept))
    return row(
        f"{name}: on against off, {options.steps} steps from SFT",
        "held-out accuracy",
        [one["accuracy"] for one in found["on"]],
        [one["accuracy"] for one in found["off"]],
        seeds=options.seeds,
        on=dict(on),
        off=dict(off),
        both={**SHORT, **both},
        curves={side: [one["curves"] for one in runs] for side, runs in found.items()},
        seconds={side: [one["seconds"] for one in runs] for side, runs in found.items()},
    )


def run(
    options: Any, settings: Mapping[str, Any], seed: int, steps: int, problems: int = 256, kept: Path | None = None
) -> dict[str, Any]:
    """Run GRPO in a process of its own; return its accuracy, curves and seconds. With a folder it is there to stay."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = (kept or Path(temporary) / "run").resolve()
        given = {**SHORT, "steps": steps, "development_problems": 8 if options.quick else problems, **settings}
        own = {f"train.{key}": value for key, value in given.items()}
        figures, rows = stage("grpo", "laptop", folder, {"model": str(options.model), "seed": seed, **own})
    shares = [value for name, value in figures.items() if name.startswith("heldout_")]
    curves = {name: [round(one[name], 4) for one in rows if name in one] for name in WATCHED}
    # Steps by their own clock, the first ones, which warm up, left out; evaluation is not among them.
    times = [one["time_s"] for one in rows]
    return {
        "accuracy": statistics.mean(shares),
        "curves": {name: values for name, values in curves.items() if values},
        "seconds": figures["seconds"],
        "step_s": (times[-2] - times[1]) / max(len(times) - 3, 1) if len(times) > 3 else times[-1] - times[0],
    }


def staleness(name: str, options: Any) -> dict[str, Any]:
    """Return the row of steps per second, drawn meanwhile against in turn."""
    steps = 4 if options.quick else 12
    seconds = alternate(
        {
            "ours": lambda: run(options, {"staleness": 2}, 0, steps, 8)["step_s"],
            "peer": lambda: run(options, {}, 0, steps, 8)["step_s"],
        },
        repeats(options),
    )
    return row(
        f"{name}: whole steps, drawn meanwhile against in turn",
        "s/step",
        seconds["ours"],
        seconds["peer"],
        less_is_better=True,
        both={**SHORT, "steps": steps},
    )


def drafts(name: str, options: Any) -> dict[str, Any]:
    """Return the row of samples per second, with drafts and without, of the same samples."""
    import time

    from leanseek.checkpoint.directory import load_model
    from leanseek.cost.ledger import Charge
    from leanseek.engine.pool import EnginePool
    from leanseek.envs.environment import load_environment
    from leanseek.kernels.threads import share_out
    from leanseek.rl.rollouts import Rollouts
    from leanseek.settings import load_recipe
    from leanseek.tokens.tokenizer import Tokenizer

    recipe = load_recipe("laptop", {"grpo.prompts_per_step": SHORT["prompts_per_step"]})
    workers = share_out(None, "cpu")
    model, tokenizer = load_model(options.model), Tokenizer.load(options.model)
    environments = [load_environment(task) for task in recipe.environments]
    samples = recipe.grpo.prompts_per_step * recipe.grpo.samples_per_prompt

    def side(drafted: int) -> Rollouts:
        engine = EnginePool(
            model,
            tokenizer,
            workers=workers,
            max_batch=samples,
            max_context_tokens=recipe.grpo.max_new_tokens + recipe.data.sequence_tokens,
            drafts=drafted,
            record_experts=True,
        )
        return Rollouts(engine, environments, recipe.levels, recipe.grpo, 0, Charge("bench"))

    def rate(rollouts: Rollouts) -> float:
        start_s = time.perf_counter()
        batches = [rollouts.batch(step) for step in range(3)]
        assert all(batch.groups for batch in batches)
        return 3 * samples / (time.perf_counter() - start_s)

    on, off = side(1), side(0)
    for rollouts in (on, off):
        for _ in range(1 if options.quick else 4):  # until it has found out for each batch size what pays
            rate(rollouts)
    rates = alternate({"ours": lambda: rate(on), "peer": lambda: rate(off)}, repeats(options))
    speculations = [engine.speculation for engine in on.engine.engines if engine.speculation is not None]
    drafted = sum(one.drafted for one in speculations)
    return row(
        f"{name}: on against off, {samples} samples of {recipe.grpo.max_new_tokens} tokens at most",
        "samples/s",
        rates["ours"],
        rates["peer"],
        accepted=round(sum(one.accepted for one in speculations) / max(drafted, 1), 4),
        drafted=drafted,
        workers=workers,
    )


def updates(dtype: str, lr: float, options: Any) -> dict[str, Any]:
    """Return the row of bytes that travel to a worker after a step: what changed against the whole."""
    from leanseek.checkpoint.directory import load_model
    from leanseek.cost.ledger import Charge
    from leanseek.engine.pool import EnginePool
    from leanseek.envs.environment import load_environment
    from leanseek.rl.grpo import objective_of
    from leanseek.rl.rollouts import Rollouts
    from leanseek.rl.weights import update_of
    from leanseek.settings import load_recipe
    from leanseek.tokens.tokenizer import Tokenizer
    from leanseek.train.trainer import Trainer

    changes = {
        "grpo.prompts_per_step": SHORT["prompts_per_step"],
        "grpo.optimiser.lr": lr,
        "grpo.optimiser.adamw_lr": lr,
    }
    recipe = load_recipe("laptop", changes | {"grpo.warmup_fraction": 0.0})
    model = load_model(options.model, dtype=dtype)
    samples = recipe.grpo.prompts_per_step * recipe.grpo.samples_per_prompt
    context = recipe.grpo.max_new_tokens + recipe.data.sequence_tokens
    pool = EnginePool(
        model, Tokenizer.load(options.model), max_batch=samples, max_context_tokens=context, record_experts=True
    )
    environments = [load_environment(task) for task in recipe.environments]
    rollouts = Rollouts(pool, environments, recipe.levels, recipe.grpo, 0, Charge("bench"))
    trainer = Trainer(model, objective_of(recipe.grpo), recipe.grpo, Charge("bench"))
    whole, sent, shares = [], [], []
    for step in range(2 + repeats(options)):
        known = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert trainer.step(rollouts.batch(step)), "some group differed"
        update = update_of(known, model.state_dict())
        if step >= 2:  # the first steps of Adam are of one size, whatever the gradient
            whole.append(sum(tensor.nbytes for tensor in known.values()))
            sent.append(update.bytes)
            shares.append(round(update.changed / update.elements, 5))
    return row(
        f"updates, {dtype}, lr {lr:g}: what changed against the whole",
        "bytes to a worker a step",
        sent,
        whole,
        less_is_better=True,
        changed_share=shares,
    )


if __name__ == "__main__":
    main()
