"""GRPO: samples/s of whole steps (sampling, reward, update) against TRL's GRPOTrainer, on the same weights and prompts.

Both sides: groups of 8, the token-level loss clipped at 0.2 and 0.28, no KL, one on-policy update a step with AdamW,
fp32, the gradient clipped at 1, the same cheap reward on the reply's tokens, replies of the same lengths. On ours each
sample has its own limit; on TRL's a logits processor (one assignment a step, and a row per reply that ends) rules the
end of sentence out and, where replies end early, in: what padding then costs TRL is what it costs in real life.
TRL runs with whichever of its settings is the fastest in a short try beforehand; the two take steps in turn. Memory is
the peak of a process of each side's own that takes two steps, libraries and weights included.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from process import in_child, memory
from rows import arguments, publish, repeats, row

GROUP = 8
PEER = {
    "experts": ["grouped_mm", "eager", "batched_mm"],
    "threads": [2, 1],
    "attention": ["sdpa", "eager"],
    "micro_batches": [1, 4],
    "continuous_batching": [False, True],
}
# Processes whose peak memory is taken, of each side: it hardly differs between them.
PEAKS = 3
LEARNING_RATE, CLIP_LOW, CLIP_HIGH = 1e-5, 0.2, 0.28
# Tokens of a step beyond which the peer's batched_mm is not tried: it copies 0.4 MB of weights for each, and keeps
# them for the backward pass.
MOST_BATCHED = 20_000


@dataclass(frozen=True)
class Work:
    """One piece of work: how long each sample's reply is, in the order of the prompts, a group side by side."""

    name: str
    lengths: tuple[int, ...]
    target: float

    @property
    def varied(self) -> bool:
        return len(set(self.lengths)) > 1


def varied_lengths(count: int, mean: int, longest: int) -> tuple[int, ...]:
    """Return lengths as RL has them: many short ones, a few long ones, one of the longest."""
    rng = random.Random(0)
    rest = [rng.expovariate(1.0) for _ in range(count - 1)]
    scale = (mean * count - longest) / sum(rest)
    lengths = [min(max(2, round(scale * x)), longest - 1) for x in rest]
    lengths[0] += mean * count - longest - sum(lengths)  # what rounding left
    lengths.insert(count // 3, longest)
    return tuple(lengths)


def works(quick: bool) -> list[Work]:
    if quick:
        return [Work("quick", (6,) * 16, 2), Work("quick, lengths that vary", varied_lengths(16, 6, 20), 3)]
    return [
        Work("512 samples of 26 tokens", (26,) * 512, 2),
        Work("64 samples of 48 tokens", (48,) * 64, 2),
        Work("64 samples of 256 tokens", (256,) * 64, 3),
        Work("64 samples, lengths that vary (mean 64, longest 512)", varied_lengths(64, 64, 512), 3),
    ]


def reward(token_ids: list[int]) -> float:
    """Return a cheap reward that differs inside a group."""
    return sum(token_ids) % 7 / 6


class Ours:
    """leanseek's engine and trainer on one model, put together as its GRPO stage does it."""

    def __init__(self, folder: Path, prompts: list[list[int]], work: Work) -> None:
        from leanseek.checkpoint.directory import load_model
        from leanseek.cost.ledger import Charge
        from leanseek.engine.pool import EnginePool
        from leanseek.engine.request import SamplingParams
        from leanseek.kernels.threads import share_out
        from leanseek.sections.grpo import GrpoSettings
        from leanseek.sections.training import OptimiserSettings
        from leanseek.tokens.tokenizer import Tokenizer
        from leanseek.train.objectives.grpo import Grpo
        from leanseek.train.trainer import Trainer

        workers = share_out(None, "cpu")
        model = load_model(folder).train()
        context = max(map(len, prompts)) + max(work.lengths)
        self.engine = EnginePool(
            model,
            Tokenizer.load(folder),
            workers=workers,
            max_batch=len(work.lengths),
            max_context_tokens=context,
            record_experts=True,  # its GRPO trains on the routing of the samples, so that costs here too
        )
        optimiser = OptimiserSettings(name="adamw", lr=LEARNING_RATE)
        settings = GrpoSettings(optimiser=optimiser, warmup_fraction=0, decay_fraction=0, balance_rate=0, steps=1000)
        self.trainer = Trainer(model, Grpo(CLIP_LOW, CLIP_HIGH), settings, Charge("bench"), workers)
        # A request for each sample, as each has its own limit; the engine still reads a group's prompt once.
        self.prompts = [prompt for prompt in prompts for _ in range(GROUP)]
        self.work = work
        self.params = [SamplingParams(max_tokens=n, ignore_eos=True, logprobs=0) for n in work.lengths]
        self.settings = {"workers": workers, "threads_each": 1}

    def step(self) -> float:
        """Take a step; return its seconds."""
        import torch

        from leanseek.rl.advantages import group_advantages
        from leanseek.train.objectives.grpo import Group, GroupBatch

        torch.set_num_threads(1)
        start_s = time.perf_counter()
        outputs = self.engine.generate(self.prompts, self.params)
        groups = []
        for at in range(0, len(outputs), GROUP):
            some = outputs[at : at + GROUP]
            advantages = group_advantages([reward(output.token_ids) for output in some])
            if advantages is not None:
                replies = [output.token_ids for output in some]
                logprobs = [output.logprobs for output in some]
                groups.append(Group(self.prompts[at], replies, logprobs, advantages, [o.experts for o in some]))
        sampled_s = time.perf_counter()
        metrics = self.trainer.step(GroupBatch(groups))
        end_s = time.perf_counter()
        assert tuple(len(output.token_ids) for output in outputs) == self.work.lengths
        assert metrics["logprob_gap"] < 1e-3
        self.settings["sampling_share"] = round((sampled_s - start_s) / (end_s - start_s), 3)
        return end_s - start_s


def peer_steps(
    folder: Path,
    texts: list[str],
    work: Work,
    settings: dict[str, Any],
    steps: int,
    between: Callable[[], None] = lambda: None,
    begin: Callable[[], None] = lambda: None,
) -> list[float]:
    """Run TRL for one step to warm up and `steps` more; return their seconds.

    Args:
        folder: the model's.
        texts: prompts.
        work: how long the replies are.
        settings: a choice from each list of PEER.
        steps: how many are timed.
        between: called after each step; its time is not counted.
        begin: called before the first.
    """
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(settings["threads"])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=settings["attention"])
    model.set_experts_implementation(settings["experts"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    lengths = torch.tensor(work.lengths)
    eos = tokenizer.eos_token_id

    class Lengths(LogitsProcessor):
        """Ends each row's reply at its length, not before."""

        def __init__(self) -> None:
            self.done = 0

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            self.done = self.done % max(work.lengths) + 1
            scores[:, eos] = float("-inf")
            if work.varied:
                ending = (lengths == self.done).nonzero().squeeze(1)
                scores[ending] = float("-inf")
                scores[ending, eos] = 0.0
            return scores

    generate = model.generate
    model.generate = lambda **given: generate(**given, logits_processor=[Lengths()])
    times: list[float] = []

    class Clock(TrainerCallback):
        start_s = 0.0

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter() - self.start_s)
            between()
            torch.set_num_threads(settings["threads"])
            self.start_s = time.perf_counter()

    def rewards(completion_ids: list[list[int]], **_: Any) -> list[float]:
        # Replies that end with the sentence's end keep it; those that reach the limit have as many tokens without it.
        assert [len(ids) for ids in completion_ids] == list(work.lengths)
        return [reward(ids) for ids in completion_ids]

    samples, parts = len(work.lengths), settings["micro_batches"]
    with tempfile.TemporaryDirectory() as output:
        trainer = GRPOTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=rewards,
            train_dataset=Dataset.from_dict({"prompt": texts}),
            args=GRPOConfig(
                output_dir=output,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                per_device_train_batch_size=samples // parts,
                gradient_accumulation_steps=parts,
                steps_per_generation=parts,
                num_generations=GROUP,
                max_completion_length=max(work.lengths),
                max_steps=1 + steps,
                shuffle_dataset=False,
                temperature=1.0,
                top_k=0,
                beta=0.0,
                loss_type="dapo",
                epsilon=CLIP_LOW,
                epsilon_high=CLIP_HIGH,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                max_grad_norm=1.0,
                use_transformers_continuous_batching=settings["continuous_batching"],
                logging_strategy="no",
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            callbacks=[Clock()],
        )
        trainer.remove_callback(PrinterCallback)
        begin()
        Clock.start_s = time.perf_counter()
        trainer.train()
    return times[1:]


def fastest_of_peer(seconds: Callable[[dict[str, Any]], float], work: Work) -> tuple[dict[str, Any], dict[str, str]]:
    """Return TRL's fastest settings, found by changing one at a time, and what did not run."""
    best = {name: choices[0] for name, choices in PEER.items()}
    record, failed = seconds(best), {}
    for name, choices in PEER.items():
        if name == "continuous_batching" and work.varied:
            continue  # it takes no logits processor, so it cannot be made to end replies
        for choice in choices[1:]:
            if choice == "batched_mm" and len(work.lengths) * max(work.lengths) > MOST_BATCHED:
                failed[f"{name} = {choice}"] = "not tried: it copies the weights of every token's experts"
                continue
            try:
                found = seconds({**best, name: choice})
            except Exception as error:
                failed[f"{name} = {choice}"] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                continue
            if found < record:
                best, record = {**best, name: choice}, found
    return best, failed


def make_model(folder: Path, groups: int) -> tuple[list[str], list[list[int]]]:
    """Save random weights of the laptop preset with a tokenizer; return prompts as text and as ids."""
    from transformers import AutoTokenizer

    from leanseek.checkpoint.directory import empty_model, save_model
    from leanseek.envs.environment import load_environment
    from leanseek.model.config import load_preset
    from leanseek.model.initialise import initialise
    from leanseek.tokens.tokenizer import Tokenizer

    environment = load_environment("running_total")
    problems = environment.problems("train", 0)
    texts = [next(problems).prompt for _ in range(2000)]
    config = load_preset("laptop")
    tokenizer = Tokenizer.train(texts, config.vocab_size)
    config = config.replace(bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id)
    save_model(initialise(empty_model(config), 0), folder, tokenizer)
    chosen = [texts[i] for i in range(groups)]
    return chosen, [list(ids) for ids in AutoTokenizer.from_pretrained(folder)(chosen)["input_ids"]]


def measure(work: Work, options: argparse.Namespace) -> None:
    """Measure one piece of work and publish its row."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        texts, prompts = make_model(folder, len(work.lengths) // GROUP)
        best, failed = {name: choices[0] for name, choices in PEER.items()}, {}
        if not options.quick:
            best, failed = fastest_of_peer(lambda s: peer_steps(folder, texts, work, s, 1)[0], work)
        ours = Ours(folder, prompts, work)
        ours.step()
        mine: list[float] = []
        theirs = peer_steps(folder, texts, work, best, repeats(options), between=lambda: mine.append(ours.step()))
        samples = len(work.lengths)
        found = row(
            f"GRPO step, {work.name}",
            "samples/s",
            [samples / s for s in mine[1:]],
            [samples / s for s in theirs],
            packages=("torch", "transformers", "trl", "accelerate"),
            model="laptop preset, random weights, fp32",
            prompt_tokens=round(sum(map(len, prompts)) / len(prompts), 1),
            our_settings=ours.settings,
            peer_settings=best,
            peer_settings_that_failed=failed,
        )
        publish("vs_trl", found, options, work.target)
        given = (folder, texts, prompts, work, best)
        peaks = [
            [in_child(peak, side, *given) for _ in range(min(repeats(options), PEAKS))] for side in ("ours", "peer")
        ]
        found = row(
            f"peak memory of GRPO steps, {work.name}",
            "bytes",
            *([most for most, _ in side] for side in peaks),
            packages=("torch", "transformers", "trl", "accelerate"),
            less_is_better=True,
            before_the_steps=[side[0][1] for side in peaks],
            peer_settings=best,
        )
        publish("vs_trl", found, options, 1 / 0.8)


def peak(
    side: str, folder: Path, texts: list[str], prompts: list[list[int]], work: Work, settings: dict[str, Any]
) -> tuple[int, int]:
    """Take two steps of a side; return the most bytes that this process had, and those before the first step."""
    if side == "ours":
        ours = Ours(folder, prompts, work)
        before = memory("VmRSS")
        ours.step()
        ours.step()
    else:
        silence()
        before = 0

        def begin() -> None:
            nonlocal before
            before = memory("VmRSS")

        peer_steps(folder, texts, work, settings, 1, begin=begin)
    return memory("VmHWM"), before


def silence() -> None:
    """Keep the peer's libraries from talking."""
    from transformers.utils import logging

    warnings.filterwarnings("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def main() -> None:
    options = arguments(__doc__.splitlines()[0]).parse_args()
    silence()
    for work in works(options.quick):
        if options.only in work.name:
            measure(work, options)


if __name__ == "__main__":
    sys.exit(main())
