"""Training: tokens/s of leanseek's trainer against litgpt, transformers' Trainer and TRL on the same shapes and tokens.

All sides: fp32, AdamW, the gradient clipped at 1, the same number of tokens a step, nothing logged, saved or judged.

- dense: one Llama shape, as wide as what is active of the mixture's, against litgpt's own `pretrain`.
- moe: one DeepSeek config, against transformers' `Trainer`. Ours balances its router besides (bias and loss), the peer
  does not; neither has MTP, which the peer lacks.
- sft: conversations of very different lengths with loss on half of their tokens, packed, against TRL's `SFTTrainer`.

Each peer runs in a process of its own, with whichever of its settings is the fastest in a short try beforehand
(`trainers.py`); ours as well. The two take steps in turn. litgpt needs a Python of its own: --litgpt PYTHON.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from process import Paced
from rows import alternate, arguments, publish, repeats, row

LENGTH = 128
VOCABULARY = 512
SHAPES = ("laptop", "evening")
# Conversations of a step of SFT, and what a pack of TRL's may hold.
CONVERSATIONS = 64
OURS = {"micro_tokens": [None, 1024, 512]}
HUGGING_FACE = {
    "experts": ["grouped_mm", "eager", "batched_mm"],
    "threads": [2, 1],
    "attention": ["sdpa", "eager"],
    "optimiser": ["adamw_torch", "adamw_torch_fused"],
    "compile": [False, True],
}


@dataclass(frozen=True)
class Work:
    """One piece of work.

    Args:
        kind: "dense", "moe" or "sft".
        shape: a preset's name.
        peer: of trainers.py.
        choices: of the peer's settings.
        target: ratio to reach.
        batch: windows of a step.
        fixed: further settings of the peer.
    """

    kind: str
    shape: str
    peer: str
    choices: dict[str, list[Any]]
    target: float
    batch: int = 32
    fixed: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        what = {
            "dense": f"pretraining, dense, {self.shape} shape, {self.batch} x {LENGTH} tokens a step",
            "moe": f"pretraining, MoE, {self.shape} preset, {self.batch} x {LENGTH} tokens a step",
            "sft": f"SFT, packed, {self.shape} preset, {CONVERSATIONS} conversations of 16 to 512 tokens a step",
        }
        return what[self.kind]


def works() -> Iterator[Work]:
    fused = {"optimiser": ["torch.optim.AdamW"]}
    for shape in SHAPES:
        threads = {"threads": [2, 1], "compile": [True, False], "micro": [32, 8, 16]}
        yield Work("dense", shape, "litgpt", {**threads, **fused}, 1.2)
        yield Work("moe", shape, "transformers", {**HUGGING_FACE, "micro": [32, 8, 16]}, 1.5)
        packs = {"length": [1024, 512], "strategy": ["bfd", "wrapped"], "parts": [1, 2]}
        yield Work("sft", shape, "trl", {**HUGGING_FACE, **packs}, 1.5)


def config_of(work: Work) -> Any:
    """Return the shape that both sides train: of a mixture, or dense and as wide as what is active of it."""
    from leanseek.model.config import ModelConfig, load_preset

    preset = load_preset(work.shape).replace(num_nextn_predict_layers=0)
    if work.kind != "dense":
        return preset
    heads = preset.num_attention_heads
    return ModelConfig.from_dict(
        {
            "model_type": "llama",
            "vocab_size": preset.vocab_size,
            "hidden_size": preset.hidden_size,
            "intermediate_size": (preset.n_shared_experts + preset.num_experts_per_tok) * preset.moe_intermediate_size,
            "num_hidden_layers": preset.num_hidden_layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": preset.hidden_size // heads,
            "rms_norm_eps": preset.rms_norm_eps,
            "rope_theta": preset.rope_theta,
            "max_position_embeddings": preset.max_position_embeddings,
            "initializer_range": preset.initializer_range,
        }
    )


def of_litgpt(config: Any) -> dict[str, Any]:
    """Return the same shape in litgpt's words."""
    return {
        "name": "twin",
        "block_size": config.max_position_embeddings,
        "padded_vocab_size": config.vocab_size,
        "vocab_size": config.vocab_size,
        "n_layer": config.num_hidden_layers,
        "n_head": config.num_attention_heads,
        "n_embd": config.hidden_size,
        "head_size": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "rotary_percentage": 1.0,
        "rope_base": int(config.rope_theta),
        "parallel_residual": False,
        "bias": False,
        "norm_class_name": "RMSNorm",
        "norm_eps": config.rms_norm_eps,
        "mlp_class_name": "LLaMAMLP",
    }


class Ours:
    """leanseek's trainer on one model."""

    def __init__(self, config: Any, batch: Callable[[int], Any]) -> None:
        from leanseek.checkpoint.directory import empty_model
        from leanseek.cost.ledger import Charge
        from leanseek.kernels.threads import share_out
        from leanseek.model.initialise import initialise
        from leanseek.sections.training import OptimiserSettings, TrainSettings
        from leanseek.train.objectives.next_token import NextToken
        from leanseek.train.trainer import Trainer

        self.workers = share_out(None, "cpu")
        self.charge, self.batch = Charge("bench"), batch
        self.model = initialise(empty_model(config), 0).train()
        optimiser = OptimiserSettings(name="adamw", lr=4e-4)
        settings = TrainSettings(steps=1_000_000, warmup_fraction=0, decay_fraction=0, optimiser=optimiser)
        self.trainer = Trainer(self.model, NextToken(0, settings.balance_loss), settings, self.charge, self.workers)

    def rate(self, steps: int, micro_tokens: int | None) -> float:
        """Take steps; return their tokens a second."""
        from time import perf_counter

        self.trainer.settings = self.trainer.settings.model_copy(update={"micro_tokens": micro_tokens})
        start_s, tokens = perf_counter(), self.charge.tokens
        for _ in range(steps):
            self.trainer.step(self.batch(self.trainer.done))
            self.trainer.done += 1
        return (self.charge.tokens - tokens) / (perf_counter() - start_s)


def conversations(count: int) -> list[tuple[list[int], list[bool]]]:
    """Return conversations as they come: many short ones, a few long ones; the second half of each is learnt."""
    rng = random.Random(0)
    found = []
    for _ in range(count):
        length = min(16 + round(rng.expovariate(1 / 90)), 512)
        ids = [rng.randrange(20, VOCABULARY) for _ in range(length)]
        found.append((ids, [place >= length // 2 for place in range(length)]))
    return found


def fastest(choices: dict[str, list[Any]], rate: Callable[[dict[str, Any]], float]) -> tuple[dict[str, Any], Any]:
    """Return the fastest settings, found by changing one at a time, and what was tried: rate, or why it failed."""
    best = {name: some[0] for name, some in choices.items()}
    record, tried = rate(best), {}
    for name, some in choices.items():
        for choice in some:
            if choice == best[name]:
                continue
            try:
                found = rate({**best, name: choice})
            except RuntimeError as error:
                tried[f"{name} = {choice}"] = str(error)
                continue
            tried[f"{name} = {choice}"] = round(found)
            if found > record:
                best, record = {**best, name: choice}, found
    return best, tried


def measure(work: Work, options: argparse.Namespace) -> None:
    """Measure one piece of work and publish its row."""
    from leanseek.data.batches import TokenStream
    from leanseek.data.traces import TraceBatches

    config = config_of(work)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokens = np.random.default_rng(0).integers(20, VOCABULARY, 400_000)
        np.save(folder / "tokens.npy", tokens)
        fixed = {"batch": work.batch, "length": LENGTH, "tokens": str(folder / "tokens.npy"), **work.fixed}
        batch: Callable[[int], Any]
        if work.kind == "sft":
            examples = conversations(40 * CONVERSATIONS)
            lines = [json.dumps([ids, list(map(int, learnt))]) for ids, learnt in examples]
            (folder / "examples.jsonl").write_text("\n".join(lines), encoding="utf-8")
            packs = CONVERSATIONS * 104 // 1024  # of 1,024 tokens: about what the conversations of a step hold
            fixed |= {"examples": str(folder / "examples.jsonl"), "packs": packs}
            batch = TraceBatches(examples, CONVERSATIONS, 0).batch
        else:
            import torch

            batch = TokenStream(torch.from_numpy(tokens), LENGTH, work.batch, 0).batch
        if work.kind == "dense":
            fixed["config"] = of_litgpt(config)
        else:
            save(config, folder / "model")
            fixed["model"] = str(folder / "model")
        steps, warm = (1, 1) if options.quick else (options.steps, 3)
        ours = Ours(config, batch)
        python = options.litgpt if work.peer == "litgpt" else sys.executable

        def started(settings: dict[str, Any]) -> Paced:
            own = dict(settings)
            if work.kind == "sft":
                own["packs"] = fixed["packs"] * 1024 // own["length"]
            return Paced(python, work.peer, {**fixed, **own})

        def tried(settings: dict[str, Any]) -> float:
            peer = started(settings)
            try:
                peer.rate(2)
                return peer.rate(warm)
            finally:
                peer.close()

        best, found = (first(work.choices), {}) if options.quick else fastest(work.choices, tried)
        mine, own = fastest(OURS, lambda settings: ours.rate(warm, **settings))
        peer = started(best)
        try:
            peer.rate(2)
            samples = alternate(
                {"ours": lambda: ours.rate(steps, **mine), "peer": lambda: peer.rate(steps)}, repeats(options)
            )
        finally:
            peer.close()
    publish(
        "vs_trainers",
        row(
            work.name,
            "tokens/s",
            samples["ours"],
            samples["peer"],
            packages=("torch",) if work.peer == "litgpt" else ("torch", "transformers", "trl", "accelerate"),
            peer_name=work.peer if work.peer != "litgpt" else f"litgpt {options.litgpt_version}",
            active_parameters=active(config),
            our_settings={**mine, "workers": ours.workers},
            our_settings_tried=own,
            peer_settings=best,
            peer_settings_tried=found,
        ),
        options,
        work.target,
    )


def first(choices: dict[str, list[Any]]) -> dict[str, Any]:
    return {name: some[0] for name, some in choices.items()}


def active(config: Any) -> int:
    """Return the parameters that a token meets."""
    from leanseek.model.count import parameters

    return parameters(config).active


def save(config: Any, folder: Path) -> None:
    """Save random weights with a tokenizer."""
    from leanseek.checkpoint.directory import empty_model, save_model
    from leanseek.envs.environment import load_environment
    from leanseek.model.initialise import initialise
    from leanseek.tokens.tokenizer import Tokenizer

    problems = load_environment("running_total").problems("train", 0)
    tokenizer = Tokenizer.train([next(problems).prompt for _ in range(2000)], config.vocab_size)
    save_model(initialise(empty_model(config), 0), folder, tokenizer)


def main(given: Sequence[str] | None = None) -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--litgpt", metavar="PYTHON", help="the Python that litgpt is installed for")
    parser.add_argument("--steps", type=int, default=8, help="of each repeat (default 8)")
    options = parser.parse_args(given)
    for work in works():
        if options.only not in work.name:
            continue
        if work.peer == "litgpt":
            if options.litgpt is None:
                print(f"{work.name}: left out, for it needs --litgpt PYTHON", file=sys.stderr)
                continue
            options.litgpt_version = version_of(options.litgpt)
        measure(work, options)


def version_of(python: str) -> str:
    import subprocess

    ask = "import importlib.metadata as m; print(m.version('litgpt'))"
    return subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
