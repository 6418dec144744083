"""Spread: what each rank of a recipe would hold, send and wait for, found without starting one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from leanseek.assignment import assignment
from leanseek.cost.energy import describe_meter
from leanseek.cost.pipeline import StageTimes, simulate
from leanseek.cost.training import plan_training
from leanseek.errors import UsageError
from leanseek.model.config import ModelConfig
from leanseek.settings import Recipe
from leanseek.train.places import STACKED, place
from leanseek.train.spans import Spans

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
    settings, sizes = recipe.parallel, dict(shapes)
    first = place(0, world, settings, config)
    width, length = BYTES[recipe.dtype], recipe.data.sequence_tokens
    texts = -(-recipe.pretrain.batch_sequences // first.readers)
    micro = min(texts, max(1, (recipe.pretrain.micro_tokens or texts * length) // length))
    if settings.pipeline > 1:
        micro = min(micro, max(1, texts // first.least_pieces))
    passes = -(-texts // micro)
    # All ranks of a run hold the same layers, and differ in rows alone: each kind is counted once.
    runs = [_Run.of(first.readers * run, world, recipe, sizes, config) for run in range(settings.pipeline)]
    held = [one for run in runs for one in run.held]
    most = max(range(world), key=lambda rank: held[rank])
    # Without a pipeline a rank has its rows; with one, the weights and gradients of its layers, and rows of the rest.
    kept = [run.whole if settings.pipeline > 1 else max(run.held) for run in runs]
    state = max(
        2 * width * whole + (state_bytes - 2 * width) * max(run.held) for whole, run in zip(kept, runs, strict=True)
    )
    tokens, away = texts * length, 1 - 1 / settings.experts
    reached = min(config.num_experts_per_tok, settings.experts) if config.n_routed_experts else 0
    again = 1.5 if recipe.pretrain.recompute else 1.0
    times = 2 if settings.pipeline > 1 else passes * (GATHERED + SUMMED)
    found: dict[str, Any] = {
        "ranks": world,
        "fullest_rank": most,
        "rank_parameters_most": held[most],
        "rank_parameters_least": min(held),
        "rank_training_state_bytes": state,
        "rank_experts_per_layer": config.n_routed_experts // settings.experts if config.n_routed_experts else None,
        "copies_of_experts": first.readers // settings.experts,
        "rank_texts_per_step": texts,
        "rank_passes_per_step": passes,
        "rank_exchanged_bytes_most": int(
            tokens * reached * away * config.hidden_size * width * WAYS * again * max(run.mixtures for run in runs)
        ),
        "rank_gathered_bytes": int(max(run.fetched for run in runs) * width * times),
        "pipeline_bubble_share": 0.0,
    }
    if first.spans is not None:
        # Hidden states forward and their gradients back, over every border of a rank's spans with another rank's.
        borders = max(_borders(first.spans, rank) for rank in range(settings.pipeline))
        found |= {
            "rank_passed_bytes_most": tokens * config.hidden_size * width * borders,
            "pipeline_bubble_share": bubble(first.spans, passes),
            "pipeline": [
                f"ranks {run * first.readers}-{(run + 1) * first.readers - 1}: {_in_words(first.spans, run)}; "
                f"{runs[run].whole / 1e9:.3g} B weights each, rows of {max(runs[run].held) / 1e9:.3g} B"
                for run in range(settings.pipeline)
            ],
        }
    return found | _planned(recipe, config, world, micro, state)


@dataclass(frozen=True)
class _Run:
    """Ranks with the same layers.

    Args:
        held: numbers whose optimiser's state each of them has.
        whole: numbers that one of them computes with.
        fetched: numbers that one of them must get from others to have them.
        mixtures: layers with routed experts.
    """

    held: list[int]
    whole: int
    fetched: float
    mixtures: int

    @classmethod
    def of(
        cls, first: int, world: int, recipe: Recipe, sizes: Mapping[str, tuple[int, ...]], config: ModelConfig
    ) -> _Run:
        settings = recipe.parallel
        one = place(first, world, settings, config)
        own = {name: shape for name, shape in sizes.items() if one.holds(name)}
        routed = {name: shape for name, shape in own.items() if name.endswith(STACKED)}
        others = {name: shape for name, shape in own.items() if name not in routed}
        known: dict[tuple[str, int, int], int] = {}
        held = []
        for rank in range(first, first + one.readers):
            there, total = replace(one, rank=rank), 0
            for kind, group, key in (
                ("routed", routed, (there.expert_index, there.expert_shard_index)),
                ("others", others, (there.shard_index, 0)),
            ):
                if (kind, *key) not in known:
                    known[(kind, *key)] = sum(prod(shape) for shape in there.held(group.items()).values())
                total += known[(kind, *key)]
            held.append(total)
        numbers = sum(map(prod, others.values())), sum(map(prod, routed.values())) // settings.experts
        fetched = numbers[0] * (1 - 1 / settings.shards) + numbers[1] * (1 - 1 / one.expert_shards)
        return cls(held, sum(numbers), fetched, sum(name.endswith(STACKED[1]) for name in routed))


def bubble(spans: Spans, passes: int) -> float:
    """Return the share of the time that ranks of a pipeline wait, where time goes by products alone."""
    costs = [float(one) for one in spans.products]
    schedule, ranks = spans.settings.schedule, spans.settings.pipeline
    return simulate(schedule, ranks, max(passes, spans.count), StageTimes(costs, costs, costs)).bubble_share


def _borders(spans: Spans, rank: int) -> int:
    mine = spans.of_rank(rank)
    ahead = sum(one + 1 < spans.count and one + 1 not in mine for one in mine)
    return ahead + sum(one > 0 and one - 1 not in mine for one in mine)


def _in_words(spans: Spans, rank: int) -> str:
    parts = []
    for one in spans.of_rank(rank):
        layers = spans.layers[one]
        parts += ["embedding"] if one == 0 else []
        if layers:
            parts.append(f"layers {layers[0]}-{layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}")
        if one == spans.count - 1:
            parts.append("MTP layer and head" if spans.config.num_nextn_predict_layers else "head")
    return ", ".join(parts)


def _planned(recipe: Recipe, config: ModelConfig, world: int, micro: int, state: int) -> dict[str, Any]:
    """Return the planner's memory and seconds, where the recipe says what GPUs it is for."""
    asked = assignment(recipe, config, world, micro)
    if asked is None:
        return {}
    device = asked.machines.device
    try:
        plan = plan_training(asked.work, asked.machines, asked.layout)
    except UsageError as error:
        return {"planned": f"not: {error}"}
    # What is kept for good is known exactly.
    parts = {"training state": state} | {
        part: int(getattr(plan.memory, part)) for part in ("activations", "buffers", "reserved")
    }
    return {
        "planned_layout": plan.layout.text,
        "planned_rank_bytes": parts | {"total": sum(parts.values())},
        "planned_fits": sum(parts.values()) <= device.memory_bytes,
        "planned_step_s": plan.step_s,
        "planned_step_parts_s": {part: round(s, 3) for part, s in plan.parts_s.items()},
        "planned_mfu": plan.mfu,
        "planned_days": plan.days,
        "planned_usd": plan.usd,
        "planned_joules": plan.joules,
        "planned_joules_per_token": plan.joules / asked.work.tokens,
        "planned_meter": describe_meter(f"estimated:{device.name}"),
    }
