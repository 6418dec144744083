"""The laptop mixture against its dense twin: bits per byte of unseen text at equal FLOPs, seconds and energy.

The twin has the same attention, MTP layer, corpus, batches and settings; in place of each mixture it has one MLP as
wide as what a token meets of the mixture, so that a token uses as many parameters, but for the router's. It trains as
many steps as take the mixture's FLOPs, seconds or joules, each time with the whole schedule. `rate` measures steps and
joules in turn, alone on the machine; `runs` then trains, which others may disturb: seconds are steps by that rate. With
--runs, a bench that was stopped goes on where it was, and rates are kept there. Of the laptop recipe's own runs, which
are the mixture's, the folders can be given.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from picture import draw
from process import stage
from rows import RESULTS, ROOT, alternate, arguments, publish, repeats, row

STEPS, RECIPE = 1000, "laptop"
# The twin's steps are rounded to so many: budgets that differ by less share a run.
GRAIN = 50
# Of a curve, and how many of these the picture leaves out.
POINTS, SKIPPED = 50, 4
BUDGETS = ("flops", "seconds", "joules")
COSTS = "costs.json"


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=None, metavar="FOLDER", help="where rates and runs are kept")
    parser.add_argument(
        "--mixtures",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="runs of the laptop recipe, by the order of the seeds",
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = options.runs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.only in "rate":
            rate(folder, options)
        if options.only in "runs":
            compare(folder, options)
    if options.only in "picture" and not options.quick:
        picture()


def shapes() -> dict[str, Any]:
    """Return both sides' configs."""
    from leanseek.model.config import load_preset

    mixture = load_preset(RECIPE)
    width = (mixture.n_shared_experts + mixture.num_experts_per_tok) * mixture.moe_intermediate_size
    layers = mixture.num_hidden_layers + mixture.num_nextn_predict_layers
    assert width == mixture.intermediate_size, "the layer that is dense on both sides stays as it is"
    return {"mixture": mixture, "dense": mixture.replace(first_k_dense_replace=layers)}


def rate(folder: Path, options: argparse.Namespace) -> None:
    """Measure what a step takes on either side, publish the row, and keep the figures."""
    sides = {name: Side(config) for name, config in shapes().items()}
    steps = 4 if options.quick else 40
    for side in sides.values():
        side.take(4)
    joules: dict[str, list[float]] = {name: [] for name in sides}

    def measured(name: str) -> float:
        seconds, spent = sides[name].take(steps)
        joules[name].append(spent / steps)
        return steps / seconds

    samples = alternate({name: lambda name=name: measured(name) for name in sides}, repeats(options))
    costs = {
        name: {
            "flops": side.charge.flops / side.trainer.done,
            "seconds": 1 / _middle(samples[name]),
            "joules": _middle(joules[name]),
        }
        for name, side in sides.items()
    }
    from leanseek.files import write_json

    write_json(folder / COSTS, costs)
    publish(
        "twin",
        row(
            "steps of laptop pretraining a second, the mixture beside its dense twin",
            "steps/s",
            samples["mixture"],
            samples["dense"],
            joules_a_step=joules,
            cost_of_a_step=costs,
            meter=sides["mixture"].meter.meter,
        ),
        options,
    )


class Side:
    """The recipe's trainer on one of the shapes, with tokens that say nothing."""

    def __init__(self, config: Any) -> None:
        import numpy as np
        import torch

        from leanseek.checkpoint.directory import empty_model
        from leanseek.cost.energy import EnergyMeter
        from leanseek.cost.ledger import Charge
        from leanseek.data.batches import TokenStream
        from leanseek.kernels.threads import share_out
        from leanseek.model.initialise import initialise
        from leanseek.settings import load_recipe
        from leanseek.train.objectives.next_token import NextToken
        from leanseek.train.trainer import Trainer

        recipe = load_recipe(RECIPE)
        settings = recipe.pretrain.model_copy(update={"steps": 1_000_000})
        tokens = torch.from_numpy(np.random.default_rng(0).integers(20, config.vocab_size, 400_000))
        self.stream = TokenStream(tokens, recipe.data.sequence_tokens, settings.batch_sequences, 0)
        self.charge, self.meter = Charge("bench"), EnergyMeter()
        self.meter.start()
        objective = NextToken(settings.mtp_weight, settings.balance_loss)
        model = initialise(empty_model(config), 0).train()
        self.trainer = Trainer(model, objective, settings, self.charge, share_out(None, "cpu"))

    def take(self, steps: int) -> tuple[float, float]:
        """Take steps, each `mtp_every`-th with the MTP layer; return their seconds and joules."""
        from dataclasses import replace

        start_s, before_j = perf_counter(), self.meter.read_joules()
        for _ in range(steps):
            done = self.trainer.done
            self.trainer.step(replace(self.stream.batch(done), mtp=done % self.trainer.settings.mtp_every == 0))
            self.trainer.done += 1
        return perf_counter() - start_s, self.meter.read_joules() - before_j


def compare(folder: Path, options: argparse.Namespace) -> None:
    """Train both sides and publish a row for each budget."""
    costs = json.loads((folder / COSTS).read_text(encoding="utf-8"))
    steps = 20 if options.quick else STEPS
    grain = 5 if options.quick else GRAIN
    ratios = {kind: costs["mixture"][kind] / costs["dense"][kind] for kind in BUDGETS}
    twin_steps = {kind: round(steps * ratio / grain) * grain for kind, ratio in ratios.items()}
    seeds = options.seeds[:1] if options.quick else options.seeds
    own = [Path(options.mixtures[number]) if number < len(options.mixtures) else None for number in range(len(seeds))]
    mixtures = [
        read(given) if given else pretrained(folder, "mixture", steps, seed, options)
        for given, seed in zip(own, seeds, strict=True)
    ]
    for kind in BUDGETS:
        twins = [pretrained(folder, "dense", twin_steps[kind], seed, options) for seed in seeds]
        pairs = list(zip(mixtures, twins, strict=True))
        unit = {side: costs[side][kind] for side in costs}
        publish(
            "twin",
            row(
                f"bits per byte of unseen text after laptop pretraining, mixture against dense twin at equal {kind}",
                "bits/byte",
                [mine["last"] for mine, _ in pairs],
                [theirs["last"] for _, theirs in pairs],
                less_is_better=True,
                steps=steps,
                twin_steps=twin_steps[kind],
                wanted_twin_steps=steps * ratios[kind],
                budget=steps * unit["mixture"],
                cost_of_a_step=unit,
                crossovers=[crossover(mine, theirs, unit) for mine, theirs in pairs],
                crossover_is=f"{kind} from which on the mixture is the better one, to the end; null: never",
                curves=[{"mixture": mine["curve"], "dense": theirs["curve"]} for mine, theirs in pairs],
                curves_are="[steps, bits per byte of the text that is learnt, mean of the steps since the last]",
            ),
            options,
        )


def picture() -> None:
    """Draw the curves at equal FLOPs beside the page that tells of them."""
    lines = (RESULTS / "twin.jsonl").read_text(encoding="utf-8").splitlines()
    (found,) = [one for one in map(json.loads, lines) if one["work"].endswith("at equal flops")]
    cost = found["cost_of_a_step"]
    curves = {
        # The first stretches fall from what is known of nothing, and would leave the others no height.
        side: [[(step * cost[side] / 1e12, bits) for step, bits in one[side][SKIPPED:]] for one in found["curves"]]
        for side in ("mixture", "dense")
    }
    draw(
        ROOT / "docs" / "concepts" / "mixture.svg",
        "Laptop pretraining: the mixture and its dense twin",
        "TFLOP",
        "bits per byte of what is learnt",
        {"mixture": curves["mixture"], "dense twin": curves["dense"]},
    )


def pretrained(folder: Path, side: str, steps: int, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Pretrain one side; return its curve and where it ends."""
    from leanseek.files import write_json

    shape, to = folder / f"{side}.json", folder / f"{side}-{steps}-{seed}"
    write_json(shape, shapes()[side].to_dict())
    own: dict[str, object] = {"seed": seed, "model": str(shape), "train.steps": steps}
    own |= {"data.documents": 2000} if options.quick else {"train.checkpoint_every": 100}
    stage("pretrain", RECIPE, to, own, quiet=False)
    return read(to)


def read(folder: Path) -> dict[str, Any]:
    """Return a run's curve, in bits per byte of what it learnt, and where it ends, in those of unseen text."""
    figures = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["pretrain"]
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [one for one in map(json.loads, lines) if one.get("stage") == "pretrain"]
    bits_per_nat = figures["bits_per_byte"] / figures["validation_loss"]
    each = max(1, len(rows) // POINTS)
    curve = [
        (some[-1]["step"], round(bits_per_nat * sum(one["loss"] for one in some) / len(some), 4))
        for some in (rows[at : at + each] for at in range(0, len(rows), each))
    ]
    return {"curve": curve, "last": figures["bits_per_byte"]}


def crossover(mine: dict[str, Any], theirs: dict[str, Any], unit: dict[str, float]) -> float | None:
    """Return the cost from which on the mixture's curve stays below the twin's; None: it does not at the end."""
    import numpy as np

    steps, bits = np.array(theirs["curve"]).T
    since = None
    for step, own in mine["curve"]:
        cost = step * unit["mixture"]
        if own >= np.interp(cost, steps * unit["dense"], bits):
            since = None
        elif since is None:
            since = cost
    return since


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
