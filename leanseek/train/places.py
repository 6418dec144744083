"""Places: which part of the model and of each batch a rank has; plain arithmetic, the same on 2 ranks and on 2,048."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from leanseek.errors import ConfigError
from leanseek.model.config import ModelConfig
from leanseek.sections.training import ParallelSettings

STACKED = (".experts.gate_up_proj", ".experts.down_proj")


@dataclass(frozen=True)
class Place:
    """One rank's place among all.

    Each has a part of the batch. Each `experts` neighbours hold one copy of every layer's routed experts, and each
    `shards` neighbours one copy of all other weights, cut by rows.

    Args:
        rank: from 0.
        world: how many there are.
        settings: how they share the work.
    """

    rank: int
    world: int
    settings: ParallelSettings

    @property
    def replicas(self) -> int:
        """Copies of the weights that are no routed experts'."""
        return self.world // self.settings.shards

    @property
    def shard_index(self) -> int:
        """Which rows of those weights are here."""
        return self.rank % self.settings.shards

    @property
    def expert_index(self) -> int:
        """Which of the parts of the experts is here."""
        return self.rank % self.settings.experts

    @property
    def expert_shards(self) -> int:
        """Ranks that share one such part further, by experts."""
        return max(self.settings.shards // self.settings.experts, 1)

    @property
    def expert_shard_index(self) -> int:
        """Which share of the part is here."""
        return self.rank // self.settings.experts % self.expert_shards

    @property
    def expert_replicas(self) -> int:
        """Copies of one share of the experts."""
        return self.world // self.settings.experts // self.expert_shards

    def rows(self, name: str, rows: int) -> tuple[int, int]:
        """Return which rows of a parameter are here: the first, and the one after the last.

        Args:
            name: of the parameter; stacked experts are cut by expert.
            rows: of the whole parameter, its first dimension.
        """
        if not name.endswith(STACKED):
            return share(rows, self.settings.shards, self.shard_index)
        held = rows // self.settings.experts
        first, last = share(held, self.expert_shards, self.expert_shard_index)
        return self.expert_index * held + first, self.expert_index * held + last

    def copies(self, name: str) -> int:
        """Return how many ranks have the same rows of a parameter."""
        return self.expert_replicas if name.endswith(STACKED) else self.replicas

    def held(self, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of what this rank has of some parameters."""
        found = {}
        for name, shape in shapes:
            first, last = self.rows(name, shape[0])
            found[name] = (last - first, *shape[1:])
        return found


def least_ranks(settings: ParallelSettings) -> int:
    """Return how many ranks there are, where the settings say, or must be at least."""
    return settings.ranks or max(settings.experts, settings.shards)


def share(count: int, parts: int, index: int) -> tuple[int, int]:
    """Return the part of `count` things that torch's `chunk` gives to an index: equal parts, the last ones less."""
    size = -(-count // parts)
    return min(index * size, count), min((index + 1) * size, count)


def check(settings: ParallelSettings, world: int, config: ModelConfig) -> None:
    """Refuse what cannot be.

    Args:
        settings: how ranks share the work.
        world: how many ranks there are.
        config: the model's.
    Raises:
        ConfigError: a number does not divide what it shares.
    """
    experts, shards = settings.experts, settings.shards
    if settings.ranks is not None and settings.ranks != world:
        raise ConfigError(
            f"parallel.ranks = {settings.ranks}, but there are {world}: start as many with torchrun "
            "(--nnodes times --nproc-per-node), or change it"
        )
    if world == 1 and max(experts, shards) > 1:
        raise ConfigError(
            f"parallel.experts = {experts}, parallel.shards = {shards} need several processes: "
            f"torchrun --nproc-per-node {least_ranks(settings)} -m -- leanseek pretrain ..."
        )
    for name, parts in (("experts", experts), ("shards", shards)):
        if world % parts:
            raise ConfigError(
                f"parallel.{name} = {parts} does not divide {world} ranks; start a multiple of {parts}, or change it"
            )
    if shards % experts and experts % shards:
        raise ConfigError(
            f"parallel.shards = {shards} and parallel.experts = {experts}: one must be a multiple of the other"
        )
    routed = config.n_routed_experts
    if experts > 1 and (not routed or routed % experts):
        raise ConfigError(
            f"parallel.experts = {experts} does not divide the model's {routed} routed experts of a layer; each rank "
            "holds as many as any other"
        )
