"""Spread: what each rank of a recipe would hold, send and wait for, found without starting one."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

from leanseek.cost.hardware import all_hardware
from leanseek.cost.layout import Layout
from leanseek.cost.machines import parse_machines
from leanseek.cost.step import Work
from leanseek.cost.training import plan_training
from leanseek.errors import UsageError
from leanseek.model.config import ModelConfig
from leanseek.settings import Recipe
from leanseek.train.places import STACKED, Place

BYTES = {"float32": 4, "bfloat16": 2}
# Sent out, and summed back; forward, and as gradients.
WAYS = 4
# Weights are gathered for the forward and for the backward pass, and gradients are summed into shards once.
GATHERED, SUMMED = 2, 1


def spread(
    recipe: Recipe, config: ModelConfig, shapes: Iterable[tuple[str, tuple[int, ...]]], world: int, state_bytes: int
) -> dict[str, Any]:
    """Return what ranks hold by their places, what travels in a step, and what the planner makes of it.

    Args:
        recipe: with its `parallel`.
        config: the model's.
        shapes: of all parameters, by name.
        world: ranks.
        state_bytes: of one weight that is trained, all in all.
    """
    settings, shapes = recipe.parallel, list(shapes)
    routed = [one for one in shapes if one[0].endswith(STACKED)]
    others = [one for one in shapes if not one[0].endswith(STACKED)]
    known: dict[tuple[str, int, int], int] = {}
    held = []
    for rank in range(world):
        place = Place(rank, world, settings)
        total = 0
        for kind, group, key in (
            ("routed", routed, (place.expert_index, place.expert_shard_index)),
            ("others", others, (place.shard_index, 0)),
        ):
            if (kind, *key) not in known:
                known[(kind, *key)] = sum(prod(shape) for shape in place.held(group).values())
            total += known[(kind, *key)]
        held.append(total)
    texts = -(-recipe.pretrain.batch_sequences // world)
    micro = min(
        texts,
        max(1, (recipe.pretrain.micro_tokens or texts * recipe.data.sequence_tokens) // recipe.data.sequence_tokens),
    )
    passes = -(-texts // micro)
    width = BYTES[recipe.dtype]
    tokens = texts * recipe.data.sequence_tokens
    moe = sum(name.endswith(STACKED[1]) for name, _ in routed)
    reached = min(config.num_experts_per_tok, settings.experts) if routed else 0
    away = 1 - 1 / settings.experts
    again = 1.5 if recipe.pretrain.recompute else 1.0
    numbers = {
        "others": sum(prod(shape) for _, shape in others) * (1 - 1 / settings.shards),
        "routed": sum(prod(shape) for _, shape in routed)
        / settings.experts
        * (1 - 1 / Place(0, world, settings).expert_shards),
    }
    found: dict[str, Any] = {
        "ranks": world,
        "fullest_rank": held.index(max(held)),
        "rank_parameters_most": max(held),
        "rank_parameters_least": min(held),
        "rank_training_state_bytes": max(held) * state_bytes,
        "rank_experts_per_layer": config.n_routed_experts // settings.experts if routed else None,
        "copies_of_experts": world // settings.experts,
        "rank_texts_per_step": texts,
        "rank_passes_per_step": passes,
        "rank_exchanged_bytes_most": int(tokens * reached * away * config.hidden_size * width * WAYS * moe * again),
        "rank_gathered_bytes": int(sum(numbers.values()) * width * passes * (GATHERED + SUMMED)),
        "pipeline_bubble_share": 0.0,
    }
    return found | _planned(recipe, config, world, micro, max(held) * state_bytes)


def _planned(recipe: Recipe, config: ModelConfig, world: int, micro: int, state: int) -> dict[str, Any]:
    """Return the planner's memory and seconds, where the recipe says what GPUs it is for."""
    name = recipe.cost.hardware
    if name is None or all_hardware()[name].kind != "gpu":
        return {}
    steps, batch, length = recipe.pretrain.steps or 1, recipe.pretrain.batch_sequences, recipe.data.sequence_tokens
    layout = Layout(
        ep=recipe.parallel.experts,
        dp=world,
        micro=micro,
        precision="bf16" if recipe.dtype == "bfloat16" else "fp32",
        recompute="full" if recipe.pretrain.recompute else "none",
        zero=3 if recipe.parallel.shards > 1 else 0,
    )
    work = Work(config, steps * batch * length, batch, length, recipe.pretrain.mtp_weight > 0)
    try:
        plan = plan_training(work, parse_machines(f"{world}x{name}"), layout)
    except UsageError as error:
        return {"planned": f"not: {error}"}
    # What is kept for good is known exactly; the planner would spread it over all ranks.
    parts = {"training state": state} | {
        part: int(getattr(plan.memory, part)) for part in ("activations", "buffers", "reserved")
    }
    return {
        "planned_layout": plan.layout.text,
        "planned_rank_bytes": parts | {"total": sum(parts.values())},
        "planned_fits": sum(parts.values()) <= all_hardware()[name].memory_bytes,
        "planned_step_s": plan.step_s,
        "planned_step_parts_s": {part: round(s, 3) for part, s in plan.parts_s.items()},
        "planned_mfu": plan.mfu,
        "planned_days": plan.days,
        "planned_usd": plan.usd,
    }
