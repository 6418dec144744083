"""Load of the routed experts over 2,000 steps of the laptop recipe's pretraining: the busiest over the mean, by layer.

The run is one of `leanseek pretrain`; its metrics have each expert's load over stretches of steps. `ours` is the worst
layer of the worst stretch after the first tenth of the steps, in which a fresh router finds its balance. What a step
on its own has is noisier, for it sees 4,096 tokens: that is `one_step`, the mean of its worst layer. With --runs, a
bench that was stopped goes on where it was.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from process import stage
from rows import arguments, publish, row

# The largest load that V3's way of balancing is held to here.
MOST = 1.3


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=None, help="gamma, in place of the recipe's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=None, metavar="FOLDER", help="where the runs are kept")
    options = parser.parse_args()
    steps = 40 if options.quick else options.steps
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as temporary:
            rows, found = pretrained((options.runs or Path(temporary)) / f"balance-{seed}", steps, seed, options)
        stretches = [one for one in rows if "expert_load" in one]
        settled = [one for one in stretches if one["step"] > steps / 10]
        worst = [[max(layer) for layer in one["expert_load"]] for one in settled]
        layers = list(zip(*worst, strict=True))
        publish(
            "balance",
            row(
                f"laptop pretraining, {steps} steps, gamma {found['gamma']:g}, seed {seed}: busiest expert over mean",
                "load",
                [max(max(layer) for layer in layers)],
                [MOST],
                less_is_better=True,
                limit=MOST,
                **found,
                by_layer={
                    "worst_stretch": [max(layer) for layer in layers],
                    "median_stretch": [statistics.median(layer) for layer in layers],
                    "last_stretch": [layer[-1] for layer in layers],
                },
                first_tenth=[max(map(max, one["expert_load"])) for one in stretches if one not in settled],
                every_stretch=worst,
                one_step=statistics.mean(one["load_factor"] for one in rows if one["step"] > steps / 10),
            ),
            options,
        )


def pretrained(folder: Path, steps: int, seed: int, options: Any) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Pretrain in a process of its own; return what it logged, its gamma and how good the model is."""
    from leanseek.run import Run

    own: dict[str, object] = {"seed": seed, "train.steps": steps, "train.checkpoint_every": 100}
    if options.quick:
        own["data.documents"] = 2000
    if options.rate is not None:
        own["train.balance_rate"] = options.rate
    figures, rows = stage("pretrain", "laptop", folder, own, quiet=False)
    gamma = Run.open(folder).recipe.pretrain.balance_rate
    return rows, {"gamma": gamma, "bits_per_byte": figures["bits_per_byte"]}


if __name__ == "__main__":
    main()
