"""Assignment: a recipe's pretraining on GPUs as the planner takes it: work, machines and layout. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from leanseek.cost.hardware import all_hardware
from leanseek.cost.layout import Layout
from leanseek.cost.machines import Machines, parse_machines
from leanseek.cost.step import Work
from leanseek.model.config import ModelConfig, load_preset
from leanseek.settings import Recipe


@dataclass(frozen=True)
class Assignment:
    """What is asked of the planner.

    Args:
        work: tokens, batch and texts.
        machines: with the recipe's own price.
        layout: as `parallel` and `pretrain` have it.
    """

    work: Work
    machines: Machines
    layout: Layout


def assignment(
    recipe: Recipe, config: ModelConfig | None = None, world: int | None = None, micro: int | None = None
) -> Assignment | None:
    """Return what a recipe's pretraining asks of the planner; None: it does not say what GPUs it is for.

    Args:
        recipe: with `cost.hardware`.
        config: the model's; None: by the recipe.
        world: ranks; None: those of `parallel`.
        micro: texts of a pass; None: as many as `pretrain.micro_tokens` has room for.
    """
    name, settings = recipe.cost.hardware, recipe.parallel
    if name is None or all_hardware()[name].kind != "gpu":
        return None
    ranks = world or settings.ranks or 1
    readers, length = max(ranks // settings.pipeline, 1), recipe.data.sequence_tokens
    batch = recipe.pretrain.batch_sequences
    texts = -(-batch // readers)
    if micro is None:
        micro = min(texts, max(1, (recipe.pretrain.micro_tokens or texts * length) // length))
    layout = Layout(
        pp=settings.pipeline,
        schedule=settings.schedule,
        ep=settings.experts,
        dp=readers,
        micro=micro,
        precision="bf16" if recipe.dtype == "bfloat16" else "fp32",
        recompute="full" if recipe.pretrain.recompute else "none",
        zero=0 if settings.shards == 1 else 1 if settings.pipeline > 1 else 3,
    )
    tokens = (recipe.pretrain.steps or 1) * batch * length
    work = Work(config or load_preset(recipe.model), tokens, batch, length, recipe.pretrain.mtp_weight > 0)
    machines = parse_machines(f"{ranks}x{name}")
    return Assignment(work, replace(machines, usd_per_device_hour=recipe.cost.usd_per_hour / ranks), layout)
