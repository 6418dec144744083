"""FP8 products against bf16: the laptop model's pretraining from the same start on the same batches.

V3's report states a relative difference of the loss below 0.25%. One row a seed, of the validation loss after the last
step; `curves` has the training loss along the way. FP8 is emulated: nothing here is about speed. With --runs, a bench
that was stopped goes on where it was.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from process import stage
from rows import arguments, publish, row

SIDES = ("fp8", "bf16")


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--runs", type=Path, default=None, metavar="FOLDER", help="where the runs are kept")
    options = parser.parse_args()
    steps = 20 if options.quick else options.steps
    with tempfile.TemporaryDirectory() as temporary:
        for seed in options.seeds:
            found = {side: pretrained(options.runs or Path(temporary), side, steps, seed) for side in SIDES}
            loss = {side: figures["validation_loss"] for side, (figures, _) in found.items()}
            last = {side: _mean(rows[-len(rows) // 10 :]) for side, (_, rows) in found.items()}
            publish(
                "fp8",
                row(
                    f"laptop pretraining, {steps} steps, validation loss, seed {seed}",
                    "nats",
                    [loss["fp8"]],
                    [loss["bf16"]],
                    less_is_better=True,
                    relative_difference=loss["fp8"] / loss["bf16"] - 1,
                    limit=0.0025,
                    relative_difference_of_last_tenth=last["fp8"] / last["bf16"] - 1,
                    curves={side: [round(one["loss"], 4) for one in rows] for side, (_, rows) in found.items()},
                ),
                options,
            )


def pretrained(runs: Path, side: str, steps: int, seed: int) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Pretrain one side; return the stage's figures and its rows."""
    own = {"train.steps": steps, "train.checkpoint_every": 50, "train.fp8": side == "fp8"}
    documents = {"data.documents": 2000} if steps < 100 else {}
    options = {"seed": seed, "dtype": "bfloat16", **own, **documents}
    return stage("pretrain", "laptop", runs / f"{side}-{seed}", options, quiet=False)


def _mean(rows: list[dict[str, float]]) -> float:
    return sum(row["loss"] for row in rows) / len(rows)


if __name__ == "__main__":
    main()
