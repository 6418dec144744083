"""Places: which part of the model and of each batch a rank has; plain arithmetic, the same on 2 ranks and on 2,048."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from leanseek.cost.schedules import stages_of
from leanseek.errors import ConfigError
from leanseek.model.config import ModelConfig
from leanseek.sections.training import ParallelSettings
from leanseek.train.spans import Spans

_EXPERT = re.compile(r"\.experts\.(\d+)\.")
STACKED = (".experts.gate_up_proj", ".experts.down_proj")


@dataclass(frozen=True)
class Place:
    """One rank's place among all.

    Ranks are cut into as many runs as the pipeline is long; each run has one part of the layers. In a run each rank has
    a part of the batch. Each `experts` neighbours hold one copy of every layer's routed experts, and each `shards`
    neighbours one copy of all other weights, cut by rows.

    Args:
        rank: from 0.
        world: how many there are.
        settings: how they share the work.
        spans: who has which layers; None: all have all.
    """

    rank: int
    world: int
    settings: ParallelSettings
    spans: Spans | None = None

    @property
    def readers(self) -> int:
        """Ranks that a batch is shared among: those of one run."""
        return self.world // self.settings.pipeline

    @property
    def reader(self) -> int:
        """Which part of a batch is here."""
        return self.rank % self.readers

    @property
    def pipeline_rank(self) -> int:
        """Which run this rank is in."""
        return self.rank // self.readers

    @property
    def replicas(self) -> int:
        """Copies of the weights that are no routed experts', in a run."""
        return self.readers // self.settings.shards

    @property
    def shard_index(self) -> int:
        """Which rows of those weights are here."""
        return self.reader % self.settings.shards

    @property
    def expert_index(self) -> int:
        """Which of the parts of the experts is here."""
        return self.reader % self.settings.experts

    @property
    def expert_shards(self) -> int:
        """Ranks that share one such part further, by experts."""
        return max(self.settings.shards // self.settings.experts, 1)

    @property
    def expert_shard_index(self) -> int:
        """Which share of the part is here."""
        return self.reader // self.settings.experts % self.expert_shards

    @property
    def expert_replicas(self) -> int:
        """Copies of one share of the experts, in a run."""
        return self.readers // self.settings.experts // self.expert_shards

    def rows(self, name: str, rows: int) -> tuple[int, int]:
        """Return which rows of a parameter are here: the first, and the one after the last.

        Args:
            name: of the parameter; stacked experts are cut by expert.
            rows: of the whole parameter, its first dimension.
        """
        start, end = self.kept(name, rows)
        first, last = self.part(name, end - start)
        return start + first, start + last

    def kept(self, name: str, rows: int) -> tuple[int, int]:
        """Return which rows would be here without `shards`."""
        held = rows // self.settings.experts if name.endswith(STACKED) else rows
        start = self.expert_index * held if name.endswith(STACKED) else 0
        return start, start + held

    def part(self, name: str, rows: int) -> tuple[int, int]:
        """Return which of the rows that are `kept` are here."""
        if name.endswith(STACKED):
            return share(rows, self.expert_shards, self.expert_shard_index)
        return share(rows, self.settings.shards, self.shard_index)

    def copies(self, name: str) -> int:
        """Return how many ranks have the same rows of a parameter."""
        in_a_run = self.expert_replicas if name.endswith(STACKED) else self.replicas
        return in_a_run * (1 if self.spans is None else len(self.spans.holders(name)))

    @property
    def least_pieces(self) -> int:
        """Micro-batches that fill the pipeline."""
        return 1 if self.spans is None else self.spans.count

    @property
    def writers(self) -> list[int]:
        """The ranks that write some of a checkpoint: those that have the first copy of anything."""
        each = max(self.settings.shards, self.settings.experts * self.expert_shards)
        return [rank for rank in range(self.world) if rank % self.readers < each]

    def writes(self, name: str) -> bool:
        """Whether this rank's rows of a parameter are those that are written: of several copies, the first."""
        group = self.settings.experts * self.expert_shards if name.endswith(STACKED) else self.settings.shards
        first = 0 if self.spans is None else self.spans.holders(name)[0]
        return self.reader < group and self.pipeline_rank == first

    def writer(self, name: str, row: int, rows: int, turn: int) -> int:
        """Return the rank that writes a tensor of the model folder: one that has it, or some of its rows.

        Args:
            name: of the parameter or buffer that it is a part of.
            row: which row of that, of stacked experts.
            rows: of the whole parameter.
            turn: number of the parameter: ranks that share rows take turns.
        """
        first = 0 if self.spans is None else self.spans.holders(name)[0]
        if name.endswith(STACKED):
            held = rows // self.settings.experts
            part, within = divmod(row, held)
            reader = within // -(-held // self.expert_shards) * self.settings.experts + part
        else:
            reader = turn % self.settings.shards
        return first * self.readers + reader

    def holds(self, name: str) -> bool:
        """Whether this rank has any of a parameter or a buffer."""
        return self.spans is None or self.pipeline_rank in self.spans.holders(name)

    def reads(self, config: ModelConfig, name: str) -> bool:
        """Whether this rank needs a tensor of a checkpoint, by its name there: each expert has its own."""
        found = _EXPERT.search(name)
        first, last = self.kept(STACKED[0], config.n_routed_experts)
        return self.holds(name) and (found is None or first <= int(found[1]) < last)

    def held(self, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
        """Return the shapes of what this rank has of some parameters."""
        found = {}
        for name, shape in shapes:
            if self.holds(name):
                first, last = self.rows(name, shape[0])
                found[name] = (last - first, *shape[1:])
        return found


def place(rank: int, world: int, settings: ParallelSettings, config: ModelConfig) -> Place:
    """Return a rank's place, with the spans of a pipeline where there is one."""
    return Place(rank, world, settings, Spans(config, settings) if settings.pipeline > 1 else None)


def least_ranks(settings: ParallelSettings) -> int:
    """Return how many ranks there are, where the settings say, or must be at least."""
    return settings.ranks or max(settings.experts, settings.shards) * settings.pipeline


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
    experts, shards, pipeline = settings.experts, settings.shards, settings.pipeline
    if settings.ranks is not None and settings.ranks != world:
        raise ConfigError(
            f"parallel.ranks = {settings.ranks}, but there are {world}: start as many with torchrun "
            "(--nnodes times --nproc-per-node), or change it"
        )
    if world == 1 and max(experts, shards, pipeline) > 1:
        raise ConfigError(
            f"parallel.experts = {experts}, parallel.shards = {shards}, parallel.pipeline = {pipeline} need several "
            "processes: "
            f"torchrun --nproc-per-node {least_ranks(settings)} -m -- leanseek pretrain ..."
        )
    for name, parts in (("pipeline", pipeline), ("experts", experts), ("shards", shards)):
        of, there = ("", world) if name == "pipeline" else (" of each part of the pipeline", world // pipeline)
        if there % parts:
            raise ConfigError(
                f"parallel.{name} = {parts} does not divide {there} ranks{of if pipeline > 1 else ''}; start a "
                f"multiple of {parts}, or change it"
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
    spans = stages_of(settings.schedule, pipeline)
    if pipeline > 1 and spans > config.num_hidden_layers:
        raise ConfigError(
            f"parallel.pipeline = {pipeline} with schedule {settings.schedule} cuts the model into {spans} parts, "
            f"but it has {config.num_hidden_layers} layers; each part needs one: lower parallel.pipeline"
        )


def check_batch(settings: ParallelSettings, world: int, batch: int, stage: str = "pretrain") -> None:
    """Refuse a pipeline that a step's batch does not fill.

    Args:
        settings: how ranks share the work.
        world: how many ranks there are.
        batch: texts of a step.
        stage: whose.
    Raises:
        ConfigError: a rank has fewer texts than there are parts of the model.
    """
    least, texts = stages_of(settings.schedule, settings.pipeline), batch // (world // settings.pipeline)
    if settings.pipeline > 1 and texts < least:
        raise ConfigError(
            f"parallel.pipeline = {settings.pipeline} with schedule {settings.schedule} needs {least} texts a step for "
            f"each of {world // settings.pipeline} ranks that read, but {stage}.batch_sequences = {batch} gives "
            f"{texts}: raise it to {least * world // settings.pipeline}, or lower parallel.pipeline"
        )
