"""Together: a few processes of a test that train one model over gloo, and what they bring home."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

import leanseek.train.optimisers as optimisers
from leanseek.checkpoint.directory import load_model
from leanseek.checkpoint.resume import load_state, save_checkpoint, save_part
from leanseek.cost.ledger import Charge
from leanseek.data.batches import Batch
from leanseek.model.config import ModelConfig
from leanseek.model.initialise import initialise
from leanseek.model.transformer import Transformer
from leanseek.sections.training import ParallelSettings, TrainSettings
from leanseek.train.objectives.next_token import NextToken
from leanseek.train.parallel import ParallelTrainer
from leanseek.train.pipeline import PipelineTrainer
from leanseek.train.ranks import join, leave
from leanseek.train.trainer import Trainer

OBJECTIVE = NextToken(mtp_weight=0.3, balance_loss=1e-2)


def exact() -> None:
    """Have Newton-Schulz iterate in fp32: in bf16 the last bits of a gradient show in the third digit of an update."""
    optimisers._iteration_dtype = lambda device: torch.float32  # type: ignore[assignment]


def train(trainer: Trainer, batches: list[Batch]) -> dict[str, Any]:
    """Take a step for each batch; return its metrics and the gradients of the first."""
    metrics = [trainer._gradients(batches[0])]
    named = {**trainer.optimiser.matrices, **trainer.optimiser.others}
    ranks = getattr(trainer, "ranks", None)
    gradients = {name: one.grad.clone() for name, one in named.items() if one.grad is not None}
    if ranks is not None:
        gradients = ranks.written(gradients, trainer.rows)
    trainer.optimiser.zero_grad()
    for batch in batches:
        metrics.append(trainer.step(batch))
        trainer.done += 1
        if trainer.average is not None:
            trainer.average.update(trainer.done, len(batches))
    if trainer.average is not None:
        trainer.average.settle()
    return {"metrics": metrics, "gradients": gradients, "state": trainer.state_dict()}


def alone(config: ModelConfig, batches: list[Batch], settings: dict[str, Any]) -> dict[str, Any]:
    """Return what one process finds."""
    model = initialise(Transformer(config), 0)
    trainer = Trainer(model, OBJECTIVE, TrainSettings(**settings), meter := Charge("test"))
    found = train(trainer, batches)
    return found | {"weights": model.state_dict(), "flops": meter.flops, "tokens": meter.tokens}


def _work(
    rank: int, world: int, port_file: str, config: ModelConfig, batches: list[Batch], settings: Any, parallel: Any
) -> None:
    torch.set_num_threads(1)
    exact()
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    torch.distributed.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=world)
    ranks = join(ParallelSettings(**parallel), config, "cpu")
    model = initialise(Transformer(config), 0)
    shapes = [(name, tuple(one.shape)) for name, one in model.named_parameters()]
    kind = ParallelTrainer if ranks.place.spans is None else PipelineTrainer
    trainer = kind(ranks, model, OBJECTIVE, TrainSettings(**settings), meter := Charge("test"))
    kept = {name: tuple(one.shape) for name, one in trainer.optimiser.weights.items()}
    assert kept == ranks.place.held(shapes), "the places say who has what"
    found = train(trainer, batches)
    share, state = trainer.share(), found.pop("state") | {"gradients": found.pop("gradients")}
    checkpoint = port_file + "-1"
    if rank > 0:
        save_part(checkpoint, rank, state, share)
    else:
        save_checkpoint(checkpoint, share, None, state, range(1, world))
        state = load_state(checkpoint)
        found |= {
            "gradients": state.pop("gradients"),
            "state": state,
            "weights": load_model(checkpoint).state_dict(),
            "flops": meter.flops,
            "tokens": meter.tokens,
        }
        torch.save(found, port_file + ".found")
    leave()


def together(
    folder: Path, world: int, config: ModelConfig, batches: list[Batch], settings: dict[str, Any], **parallel: Any
) -> dict[str, Any]:
    """Return what the first of some processes finds."""
    port_file = str(folder / "meet")
    mp.spawn(_work, (world, port_file, config, batches, settings, parallel), nprocs=world)
    found: dict[str, Any] = torch.load(port_file + ".found", weights_only=True)
    return found
