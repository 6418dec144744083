"""The line on a laptop, per seed: time, share of each stage, memory, energy, money, accuracy after each stage.

Each seed is a run of its own, made from nothing by `leanseek make`; runs that are there already are read.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from rows import arguments, publish, row


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--recipe", default="laptop", help="name or path of a recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a run for each")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders")
    options = parser.parse_args()
    for seed in options.seeds:
        folder = options.runs / f"{options.recipe}-seed{seed}"
        make = [sys.executable, "-m", "leanseek", "make", options.recipe, "--run", str(folder), "--seed", str(seed)]
        if options.quick:
            make.append("--dry-run")
        subprocess.run(make, check=True)
        if not options.quick:
            publish(options.recipe, summary_row(options.recipe, seed, folder), options)


def summary_row(recipe: str, seed: int, folder: Path) -> dict[str, Any]:
    """Return the row of a finished run."""
    from leanseek.run import Run

    run = Run.open(folder)
    summary, line = run.summary, run.recipe.line
    models = ["base", *(name for name, kind in line.items() if kind in ("sft", "grpo", "distill"))]
    practised = [summary[name] for name, kind in line.items() if kind == "grpo"]
    totals = summary["totals"]
    figures = row(f"make {recipe}, seed {seed}", "s", [totals["seconds"]], packages=("torch", "tokenizers"))
    accuracy = {
        name: {
            **{model: found[model] for model in models},
            "gain_points": 100 * (found[models[-1]] - found[models[1]]),
            "n": found["n"],
            "interval": found["interval"],
            "sound": found["sound"],
            "pass_at_k": found["pass_at_k"],
        }
        for name, found in summary["accuracy"].items()
    }
    return figures | {
        "made_by_commit": summary["machine"]["commit"],
        "seconds": {name: summary[name]["seconds"] for name in line},
        "share": {name: summary[name]["seconds"] / totals["seconds"] for name in line},
        "accuracy": accuracy,
        "bits_per_byte": summary["pretrain"]["bits_per_byte"],
        "logprob_gap": max((one["logprob_gap"] for one in practised), default=None),
        "routing_agreement": min((one["routing_agreement"] for one in practised), default=None),
        "mtp_acceptance": summary["mtp"]["acceptance"],
        **{name: totals[name] for name in ("peak_memory_bytes", "tokens", "flops", "joules", "meter", "usd")},
        "model": summary["model"],
    }


if __name__ == "__main__":
    main()
