"""The line on a laptop, per seed: time, share of each stage, memory, energy, money, accuracy after each stage.

Each seed is a run of its own, made from nothing by `leanseek make`; runs that are there already are read. Recipes that
begin alike need not pretrain alike again: `--base RUN` takes over another run's first stages, with what they cost. With
`--model FOLDER` a run starts from that model, fine-tuned first, in place of pretraining.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from rows import arguments, publish, row

# Settings that all stages depend on.
SHARED = ("model", "seed", "dtype", "environments", "levels", "data", "tokenizer", "pretrain")


def main() -> None:
    parser = arguments(__doc__ or "")
    parser.add_argument("--recipe", default="laptop", help="name or path of a recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a run for each")
    parser.add_argument("--model", type=Path, help="model or run folder that each run starts from; default: none")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders")
    parser.add_argument("--base", type=Path, default=None, help="a run of the one seed that begins alike")
    options = parser.parse_args()
    for seed in options.seeds:
        folder = options.runs / f"{options.recipe}-seed{seed}"
        if options.base is not None and not folder.exists() and not options.quick:
            begin(folder, options.base, options.recipe, seed)
        make = [sys.executable, "-m", "leanseek", "make", options.recipe, "--run", str(folder), "--seed", str(seed)]
        if options.model is not None:
            make += started(options.model)
        if options.quick:
            make.append("--dry-run")
        subprocess.run(make, check=True)
        if not options.quick:
            found = summary_row(options.recipe, seed, folder)
            if options.model is not None:
                found["model"]["name"] = str(options.model)
            publish(options.recipe, found, options)


def begin(folder: Path, base: Path, recipe: str, seed: int) -> None:
    """Make a run folder whose first stages are another run's, as far as both are alike, rows of the ledger included.

    Raises:
        SystemExit: that run began otherwise, or is not so far.
    """
    from leanseek.cost.chain import append_sealed, read_chain
    from leanseek.run import Run
    from leanseek.sections.group import Settings
    from leanseek.settings import load_recipe

    known, wanted = Run.open(base), load_recipe(recipe, {"seed": seed})
    other = [name for name in SHARED if getattr(known.recipe, name) != getattr(wanted, name)]
    alike: list[str] = []
    for name, kind in wanted.line.items():
        if known.recipe.line.get(name) != kind or not known.stage_done(name) or kind == "eval":
            break
        if name not in SHARED:
            ours, theirs = (
                (one.settings_of(name, Settings), one.before(name), one.environments_of(name), one.efforts)
                for one in (wanted, known.recipe)
            )
            if ours != theirs:
                break
        alike.append(name)
    if other or "pretrain" not in alike:
        raise SystemExit(f"{base} cannot begin {recipe}: other settings {other}, stages alike {alike}")
    run = Run.create(folder, wanted)
    folders = [
        known.tokenizer_folder,
        known.corpus_folder,
        *(path for name in alike for path in known.checkpoints(name)),
    ]
    for path in folders:
        shutil.copytree(path, folder / path.relative_to(base))
    for charged in read_chain(known.ledger_path).rows:
        if charged["stage"] in alike:
            append_sealed(run.ledger_path, charged)
    rows = [json.loads(line) for line in known.metrics_path.read_text(encoding="utf-8").splitlines()]
    kept = [json.dumps(one) + "\n" for one in rows if one.get("stage") in alike]
    run.metrics_path.write_text("".join(kept), encoding="utf-8")
    for name in alike:
        run.finish(name, known.summary[name])


def started(model: Path) -> list[str]:
    """Return the options of a run that fine-tunes a folder's model, then goes on as its recipe says."""
    from leanseek.run import model_folder

    start = model_folder(model).resolve()
    return ["--model", str(start / "config.json"), "--grpo.start", str(start), "--grpo.cold_start", "true"]


def summary_row(recipe: str, seed: int, folder: Path) -> dict[str, Any]:
    """Return the row of a finished run."""
    from leanseek.run import Run

    run = Run.open(folder)
    summary, line = run.summary, run.recipe.line
    taught = [name for name, kind in line.items() if kind in ("sft", "grpo", "distill")]
    models = [*(["base"] if "pretrain" in line else []), *taught]
    first = taught[0] if len(taught) > 1 else models[0]  # what is gained on: the first that can answer at all
    practised = [summary[name] for name, kind in line.items() if kind == "grpo"]
    totals = summary["totals"]
    figures = row(f"make {recipe}, seed {seed}", "s", [totals["seconds"]], packages=("torch", "tokenizers"))
    accuracy = {
        name: {
            **{model: found[model] for model in models},
            "gain_points": 100 * (found[taught[-1]] - found[first]),
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
        "bits_per_byte": summary["pretrain"]["bits_per_byte"] if "pretrain" in line else None,
        "logprob_gap": max((one["logprob_gap"] for one in practised), default=None),
        "routing_agreement": min((one["routing_agreement"] for one in practised), default=None),
        "mtp_acceptance": summary["mtp"]["acceptance"],
        **{name: totals[name] for name in ("peak_memory_bytes", "tokens", "flops", "joules", "meter", "usd")},
        "model": summary["model"],
    }


if __name__ == "__main__":
    main()
