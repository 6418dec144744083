"""Planner: the front door of `leanseek plan`: a model, machines and an amount of tokens in, a plan out. No torch."""

from __future__ import annotations

from pathlib import Path

from leanseek.cost.hardware import Hardware
from leanseek.cost.layout import Layout, parse_layout
from leanseek.cost.machines import Machines, parse_machines
from leanseek.cost.search import Loser, search
from leanseek.cost.step import Work
from leanseek.cost.training import TrainingPlan, plan_training
from leanseek.errors import CheckpointError, UsageError, nearest
from leanseek.model.config import ModelConfig, load_preset, preset_names
from leanseek.units import parse_count

# DeepSeek-V3's batch: 15,360 texts on 2,048 GPUs, 7.5 each; on few devices 8 each, which divides better.
TEXTS_PER_DEVICE, TEXTS_ON_FEW, FEW = 7.5, 8, 512
# V3's texts while it was pretrained.
TEXT_TOKENS = 4096


def plan(
    model: str | ModelConfig,
    on: str,
    tokens: str | int,
    *,
    layout: str | None = None,
    price: str | None = None,
    batch: int | None = None,
    length: int | None = None,
    mtp: bool = True,
    this: Hardware | None = None,
) -> TrainingPlan:
    """Say what a training run would take.

    Args:
        model: the name of a shape, a model folder, or a config.
        on: machines, such as "2048xh800", "8xh100" or "2xvirtual-cpu".
        tokens: in all, such as "14.8T".
        layout: how a step is spread, such as "pp=16,ep=64,schedule=dualpipe"; None: the best that is found.
        price: of a GPU (a core) and hour, such as "$2/h"; None: the hardware table's.
        batch: texts of a step; None: 7.5 for each device, as V3 had.
        length: tokens of a text; None: 4,096, or the model's context if that is shorter.
        mtp: whether the MTP layer is trained, if there is one.
        this: the row that "this" means, as `leanseek plan --calibrate` measured it.
    Raises:
        UsageError: the machines, the tokens or the layout cannot be read, or nothing fits.
        CheckpointError: there is no such model.
    """
    machines = parse_machines(on, price, this)
    work = work_of(config_of(model), tokens, machines, batch, length, mtp)
    if layout is None:
        return best_plan(work, machines)[0]
    return plan_training(work, machines, parse_layout(layout, Layout(precision=default_precision(machines))))


def best_plan(work: Work, machines: Machines, precision: str | None = None) -> tuple[TrainingPlan, list[Loser]]:
    """Return the best plan that is found, and those that come after it."""
    return search(work, machines, precision or default_precision(machines))


def config_of(model: str | ModelConfig) -> ModelConfig:
    """Return the config that a name or a folder stands for.

    Raises:
        CheckpointError: there is none.
    """
    if isinstance(model, ModelConfig):
        return model
    path = Path(model)
    if (path / "config.json").is_file():
        return ModelConfig.from_file(path / "config.json")
    if path.suffix == ".json" and path.is_file():
        return ModelConfig.from_file(path)
    if model in preset_names():
        return load_preset(model)
    raise CheckpointError(
        f"{model}: neither a shape, a model folder nor a config.json{nearest(model, preset_names())}; have "
        f"{', '.join(preset_names())}"
    )


def work_of(
    config: ModelConfig, tokens: str | int, machines: Machines, batch: int | None, length: int | None, mtp: bool = True
) -> Work:
    """Return the work with what is not given filled in.

    Raises:
        UsageError: an amount is not one.
    """
    count = tokens if isinstance(tokens, int) else parse_count(tokens)
    tokens_of_text = length if length is not None else min(TEXT_TOKENS, config.max_position_embeddings)
    devices = machines.count
    texts = batch if batch is not None else default_batch(devices)
    for name, value in (("tokens", count), ("batch", texts), ("length", tokens_of_text)):
        if value < 1:
            raise UsageError(f"{name} = {value}: at least 1 is needed")
    return Work(config, count, texts, tokens_of_text, mtp)


def default_batch(devices: int) -> int:
    """Return how many texts a step has where nobody says."""
    return TEXTS_ON_FEW * devices if devices <= FEW or devices % 2 else round(TEXTS_PER_DEVICE * devices)


def default_precision(machines: Machines) -> str:
    """Return what products are done in where nobody says: the fastest that the device has; fp32 on processors."""
    if machines.device.kind == "cpu":
        return "fp32"
    return "fp8" if machines.device.fp8_flops else "bf16"
