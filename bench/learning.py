"""Learning: seconds until a model solves 80% of held-out problems, and peak memory, against TRL's GRPOTrainer.

Both sides start from the same SFT checkpoint and see the same training problems in the same order: 64 prompts of
the task a step, groups of 8, replies of 80 tokens at most, the token-level loss clipped at 0.2 and 0.28, no KL, an
update a step by AdamW at a constant rate, fp32. Each runs in a process of its own, and saves its weights every second
step; the parent measures them with one and the same engine while the side waits, so that evaluation is in neither
time nor memory. TRL has the settings that bench/vs_trl.py found to be the fastest for steps of this size.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from process import memory
from rows import arguments, publish, row

ROOT = Path(__file__).resolve().parents[1]
GROUP, LONGEST, LEARNING_RATE, CLIPS = 8, 80, 4e-4, (0.2, 0.28)
TARGET, EVERY, MOST_STEPS, HELD_OUT = 0.8, 2, 60, 256
PEER = {"experts": "eager", "attention": "eager", "threads": 2}  # of bench/results/vs_trl.jsonl, 512 samples


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=None, help="SFT checkpoint (default: that of runs/laptop)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of problems and samples")
    parser.add_argument("--prompts", type=int, default=64, help="of a step")
    parser.add_argument("--task", default="grid_walk", help="that is learnt")
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side = {"ours": ours, "peer": peer}[options.side]
        side(options.model, load_task(options.task), options.seeds[0], options.prompts)
        return
    if options.model is None:
        options.model = max((ROOT / "runs" / "laptop" / "checkpoints").glob("sft-*"), default=None)
        if options.model is None:
            sys.exit("no SFT checkpoint: python -m leanseek make laptop, or --model FOLDER")
    seeds = options.seeds[:1] if options.quick else options.seeds
    found: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for seed in seeds:
        for side, runs in found.items():
            runs.append(run(side, seed, options))
    if not options.quick and any(one["curve"][-1][2] < TARGET for one in found["ours"]):
        sys.exit(f"we did not reach {TARGET:.0%} in {MOST_STEPS} steps")
    more = {
        "packages": ("torch", "transformers", "trl", "accelerate"),
        "less_is_better": True,
        "seeds": seeds,
        "curves": {side: [one["curve"] for one in runs] for side, runs in found.items()},
        "curves_are": "[steps, seconds, accuracy on held-out problems]",
        "peer_settings": PEER,
    }
    for name, unit, figure, target in (
        (f"seconds to {TARGET:.0%} of {options.task}", "s", "seconds", 3),
        (f"joules to {TARGET:.0%} of {options.task}", "J", "joules", 3),
        (f"peak memory while learning {options.task}", "bytes", "memory", 1 / 0.8),
    ):
        mine, theirs = ([one[figure] for one in found[side]] for side in ("ours", "peer"))
        publish("learning", row(name, unit, mine, theirs, **more), options, target)


def run(side: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Let one side learn until it solves enough; return its seconds, joules, peak memory, and its curve."""
    from leanseek.checkpoint.directory import load_model
    from leanseek.engine.engine import Engine
    from leanseek.evals.accuracy import evaluate
    from leanseek.tokens.tokenizer import Tokenizer

    environment, tokenizer = load_task(options.task), Tokenizer.load(options.model)
    command = [sys.executable, __file__, "--side", side, "--model", str(options.model), "--seeds", str(seed)]
    command += ["--task", options.task]
    command += ["--prompts", "4" if options.quick else str(options.prompts)]
    curve: list[tuple[int, float, float]] = []
    told: dict[str, Any] = {}
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None and child.stdout is not None
    with child:
        for line in child.stdout:
            if not line.startswith("{"):
                continue
            told = json.loads(line)
            engine = Engine(load_model(told["folder"]), tokenizer, max_batch=HELD_OUT, max_context_tokens=192)
            count = 16 if options.quick else HELD_OUT
            greedy = evaluate(engine, environment, problems=count, samples=0, max_new_tokens=LONGEST).greedy
            curve.append((told["steps"], round(told["seconds"], 2), round(greedy.share, 4)))
            enough = greedy.share >= TARGET or told["steps"] >= MOST_STEPS or options.quick
            child.stdin.write("stop\n" if enough else "go\n")
            child.stdin.flush()
    if child.returncode or not curve:
        sys.exit(f"the run of {side} failed: {' '.join(command)}")
    print(f"  {side}, seed {seed}: {curve[-1]}", flush=True)
    return {"curve": curve, **{name: told[name] for name in ("seconds", "joules", "memory")}}


class Clock:
    """Counts the seconds and joules of steps alone, and asks the parent whether to go on."""

    def __init__(self) -> None:
        from leanseek.cost.energy import EnergyMeter

        self.meter = EnergyMeter()
        self.meter.start()
        self.steps, self.seconds, self.joules = 0, 0.0, 0.0
        self.go()

    def go(self) -> None:
        self._start = time.perf_counter(), self.meter.read_joules()

    def stop(self) -> None:
        self.seconds += time.perf_counter() - self._start[0]
        self.joules += self.meter.read_joules() - self._start[1]
        self.steps += 1

    @property
    def due(self) -> bool:
        return self.steps % EVERY == 0

    def enough(self, folder: Path) -> bool:
        told = {"steps": self.steps, "seconds": self.seconds, "joules": self.joules, "memory": memory("VmHWM")}
        print(json.dumps({**told, "folder": str(folder)}), flush=True)
        return sys.stdin.readline().strip() != "go"


def ours(model_folder: Path, task: Any, seed: int, prompts: int) -> None:
    """Learn as the GRPO stage does."""
    from leanseek.checkpoint.directory import load_model, save_model
    from leanseek.cost.ledger import Charge
    from leanseek.engine.pool import EnginePool
    from leanseek.kernels.threads import share_out
    from leanseek.rl.grpo import objective_of
    from leanseek.rl.rollouts import Rollouts
    from leanseek.sections.grpo import GrpoSettings
    from leanseek.tokens.tokenizer import Tokenizer
    from leanseek.train.trainer import Trainer

    workers = share_out(None, "cpu")
    settings = GrpoSettings(
        steps=MOST_STEPS,
        prompts_per_step=prompts,
        samples_per_prompt=GROUP,
        max_new_tokens=LONGEST,
        optimiser={"name": "adamw", "lr": LEARNING_RATE},
        warmup_fraction=0,
        decay_fraction=0,
        balance_rate=0,
    )
    model, tokenizer = load_model(model_folder).train(), Tokenizer.load(model_folder)
    pool = EnginePool(
        model, tokenizer, workers=workers, max_batch=prompts * GROUP, max_context_tokens=192, record_experts=True
    )
    rollouts = Rollouts(pool, [task], {}, settings, seed, Charge("bench"))
    trainer = Trainer(model, objective_of(settings), settings, Charge("bench"), workers)
    clock = Clock()
    with tempfile.TemporaryDirectory() as temporary:
        for step in range(MOST_STEPS):
            clock.go()
            trainer.step(rollouts.batch(step))
            trainer.done += 1
            clock.stop()
            if clock.due:
                folder = Path(temporary) / str(step)
                save_model(model, folder, tokenizer)
                if clock.enough(folder):
                    break


def peer(model_folder: Path, task: Any, seed: int, count: int) -> None:
    """Learn with TRL."""
    import warnings

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
    from transformers.utils import logging
    from trl import GRPOConfig, GRPOTrainer

    from leanseek.tokens.chat import ChatFormat
    from leanseek.tokens.tokenizer import Tokenizer

    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(PEER["threads"])
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(
        model_folder, dtype=torch.float32, attn_implementation=PEER["attention"]
    )
    model.set_experts_implementation(PEER["experts"])
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    chat = ChatFormat(Tokenizer.load(model_folder))
    problems = [problem for step in range(MOST_STEPS) for problem in problems_of(task, step, seed, count)]
    prompts = [chat.prompt(task.start(problem).messages) for problem in problems]
    texts = [tokenizer.decode(ids) for ids in prompts]
    assert all(tokenizer(text)["input_ids"] == ids for text, ids in zip(texts[:64], prompts, strict=False))

    def rewards(completion_ids: list[list[int]], problem: list[int], **_: Any) -> list[float]:
        scored = []
        for ids, place in zip(completion_ids, problem, strict=True):
            turn = task.start(problems[place]).step(chat.parse(ids))
            scored.append(float(turn.rewards["correct"]))
        return scored

    with tempfile.TemporaryDirectory() as temporary:
        clock = Clock()

        class Watch(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                clock.go() if clock.steps == 0 else None

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                clock.stop()
                if clock.due:
                    folder = Path(temporary) / str(clock.steps)
                    model.save_pretrained(folder)
                    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
                    config["num_nextn_predict_layers"] = 0  # transformers leaves the MTP layer out
                    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
                    control.should_training_stop = clock.enough(folder)
                clock.go()

        trainer = GRPOTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=rewards,
            train_dataset=Dataset.from_dict({"prompt": texts, "problem": list(range(len(texts)))}),
            args=GRPOConfig(
                output_dir=str(Path(temporary) / "trl"),
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                per_device_train_batch_size=count * GROUP,
                gradient_accumulation_steps=1,
                steps_per_generation=1,
                num_generations=GROUP,
                max_completion_length=LONGEST,
                max_steps=MOST_STEPS,
                shuffle_dataset=False,
                temperature=1.0,
                top_k=0,
                beta=0.0,
                loss_type="dapo",
                epsilon=CLIPS[0],
                epsilon_high=CLIPS[1],
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                max_grad_norm=1.0,
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                seed=seed,
            ),
            callbacks=[Watch()],
        )
        trainer.remove_callback(PrinterCallback)
        clock.go()
        trainer.train()


def load_task(name: str) -> Any:
    """Return the task."""
    from leanseek.envs.environment import load_environment

    return load_environment(name)


def problems_of(task: Any, step: int, seed: int, count: int) -> Iterator[Any]:
    """Return the problems that `Rollouts` has for a step."""
    from leanseek.rl.rollouts import Rollouts
    from leanseek.sections.grpo import GrpoSettings

    return iter(Rollouts(None, [task], {}, GrpoSettings(prompts_per_step=count), seed, None).problems(step))


if __name__ == "__main__":
    main()
