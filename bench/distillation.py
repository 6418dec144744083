"""Distillation against reinforcement on a small student at equal energy: which makes more of the same joules?

A student of a third of the teacher's weights is pretrained and fine-tuned once, with the teacher's recipe and seed, so
that both read the same tokens. From there it goes on for the same minutes on the same machine by GRPO, by distillation
on its own replies, by SFT on the teacher's replies, and each is measured on held-out problems. A run for each seed; the
joules are the ledger's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rows import arguments, publish, row

# Of the laptop preset: narrower and with fewer experts.
SMALLER = {"hidden_size": 80, "intermediate_size": 240, "moe_intermediate_size": 64, "n_routed_experts": 4}
METHODS = ("grpo", "on_policy", "traces")
QUICK = {
    **{"sft.traces_per_environment": 64},
    **{"sft.development_problems": 2, "grpo.development_problems": 2, "distill.development_problems": 2},
    **{"grpo.prompts_per_step": 4, "distill.prompts_per_step": 4, "traces.problems": 8, "eval.problems": 8},
}


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, default=Path("runs/laptop"), help="run of the recipe laptop")
    parser.add_argument("--minutes", type=float, default=1.0, help="of each method")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="a run of each method for each")
    parser.add_argument("--runs", type=Path, default=Path("runs/distillation"), help="folder of the run folders")
    options = parser.parse_args()
    if options.quick:
        options.minutes, options.seeds = 0.05, options.seeds[:1]
    student = make_student(options)
    found = {method: [made(options, student, method, seed) for seed in options.seeds] for method in METHODS}
    for method in METHODS[1:]:
        ours, peer = found[method], found["grpo"]
        shown = row(
            f"{method} from a teacher, against GRPO, a small student",
            "share of held-out problems solved, mean of the tasks",
            [one["accuracy"] for one in ours],
            [one["accuracy"] for one in peer],
            joules={"ours": [one["joules"] for one in ours], "peer": [one["joules"] for one in peer]},
            tasks={"ours": [one["tasks"] for one in ours], "peer": [one["tasks"] for one in peer]},
            before=ours[0]["before"],
            minutes=options.minutes,
            teacher=teacher_accuracy(options.teacher),
            student=SMALLER,
        )
        publish("distillation", shown, options)


def make_student(options: argparse.Namespace) -> Path:
    """Return the folder of the student after its cold start; made once."""
    from leanseek import stages
    from leanseek.model.config import load_preset
    from leanseek.run import Run
    from leanseek.settings import load_recipe

    shape = options.runs / "student.json"
    shape.parent.mkdir(parents=True, exist_ok=True)
    shape.write_text(json.dumps(load_preset("laptop").to_dict() | SMALLER))
    if options.quick:
        return quick_student(options)
    values = {"model": str(shape), "seed": Run.open(options.teacher).recipe.seed}
    folder = options.runs / "student"
    run = Run.open(folder) if Run.is_run(folder) else Run.create(folder, load_recipe("laptop", values))
    stages.make(run, "sft")
    found = run.latest("sft")
    assert found is not None, "the stage is made"
    return found.resolve()


def quick_student(options: argparse.Namespace) -> Path:
    """Return a student with random weights and the teacher's tokenizer."""
    from leanseek.checkpoint.directory import empty_model, save_model
    from leanseek.model.config import load_preset
    from leanseek.model.initialise import initialise
    from leanseek.tokens.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(options.teacher / "tokenizer")
    config = load_preset(str(options.runs / "student.json"))
    config = config.replace(bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id)
    folder = options.runs / "quick-student"
    save_model(initialise(empty_model(config), 0), folder, tokenizer)
    return folder.resolve()


def made(options: argparse.Namespace, student: Path, method: str, seed: int) -> dict[str, Any]:
    """Let the student go on by a method and return what it can and what that took."""
    from leanseek import stages
    from leanseek.run import Run, model_folder
    from leanseek.settings import load_recipe

    teacher = str(model_folder(options.teacher).resolve())
    values: dict[str, Any] = {
        "grpo": {"stages": {"grpo": {}}},
        "on_policy": {"stages": {"distill": {"teachers": [teacher]}}},
        "traces": {"stages": {"traces": {"teacher": teacher}, "sft": {"traces": "traces"}}},
    }[method]
    values |= {"model": str(student / "config.json"), "grpo.start": str(student), "seed": seed}
    values |= {"data.sequence_tokens": 128, "grpo.max_new_tokens": 80, "eval.samples": 1}
    recipe = load_recipe("distiller", values | (QUICK if options.quick else {}))
    stage = list(recipe.line)[-2]
    # Steps follow from the minutes.
    own = {"steps": None, "minutes": options.minutes}
    changed = {kind: getattr(recipe, kind).model_copy(update=own) for kind in ("grpo", "distill", "sft")}
    recipe = recipe.model_copy(update=changed)
    folder = options.runs / f"{method}-seed{seed}{'-quick' if options.quick else ''}"
    run = Run.open(folder) if Run.is_run(folder) else Run.create(folder, recipe)
    stages.make(run)
    summary = run.summary
    joules = sum(summary[name]["joules"] for name in run.recipe.line if name != "eval")
    tasks = {task: figures[stage] for task, figures in summary["accuracy"].items()}
    before = {name.removeprefix("heldout_"): share for name, share in summary[stage].get("before", {}).items()}
    mean = sum(tasks.values()) / len(tasks)
    return {"accuracy": mean, "tasks": tasks, "joules": joules, "before": before, "steps": summary[stage]["steps"]}


def teacher_accuracy(folder: Path) -> dict[str, float]:
    """Return what the teacher's own run says of its last model."""
    from leanseek.run import Run

    run = Run.open(folder)
    last = list(run.recipe.line)[-2]
    return {task: figures[last] for task, figures in run.summary.get("accuracy", {}).items() if last in figures}


if __name__ == "__main__":
    main()
