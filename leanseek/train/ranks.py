"""Ranks: the processes that torchrun started to train one model together, and what they tell one another."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor

from leanseek.checkpoint.names import Entry, copies, parts_of
from leanseek.checkpoint.parts import Rows
from leanseek.checkpoint.share import Files, Share
from leanseek.data.batches import IGNORED, Batch
from leanseek.kernels.threads import available_threads, keep_memory
from leanseek.model.config import ModelConfig
from leanseek.model.transformer import Transformer
from leanseek.sections.training import ParallelSettings
from leanseek.train.objectives.next_token import mean_loss
from leanseek.train.places import STACKED, Place, check, place, share
from leanseek.variables import torchrun

# How long ranks wait for one another: the first may be turning a corpus into tokens meanwhile.
PATIENCE = timedelta(hours=6)


class Ranks:
    """This process among those that train together.

    Args:
        place: which part it has.
        device: "cpu" (they talk by gloo) or "cuda" (by NCCL).
    """

    def __init__(self, place: Place, device: str) -> None:
        self.place, self.device = place, device
        settings = place.settings
        shape = (settings.pipeline, place.replicas, settings.shards)
        plain = init_device_mesh(device, shape, mesh_dim_names=("pipeline", "replicas", "shards"))
        shapes = (settings.pipeline, place.expert_replicas, place.expert_shards, settings.experts)
        names = ("expert_pipeline", "expert_replicas", "expert_shards", "experts")
        routed = init_device_mesh(device, shapes, mesh_dim_names=names)
        # Of weights that are cut by rows: copies first, where there are several.
        self.mesh: DeviceMesh = plain["replicas", "shards"] if place.replicas > 1 else plain["shards"]
        several = place.expert_replicas > 1
        self.expert_mesh: DeviceMesh = (
            routed["expert_replicas", "expert_shards"] if several else routed["expert_shards"]
        )
        self.pipeline = plain.get_group("pipeline")
        self.shards, self.replicas = plain.get_group("shards"), plain.get_group("replicas")
        self.expert_shards, self.expert_replicas = (
            routed.get_group("expert_shards"),
            routed.get_group("expert_replicas"),
        )
        self.experts = routed.get_group("experts")
        # Of a pipeline's trainer: the model's loss on a batch where its end is, None elsewhere.
        self.mean_loss_of: Callable[[Transformer, list[Batch]], float | None] = mean_loss

    @property
    def first(self) -> bool:
        """Whether this is the rank that logs, charges and writes."""
        return self.place.rank == 0

    def agree(self, value: float) -> float:
        """Return the largest of the values that the ranks have."""
        found = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return float(found)

    def total(self, values: Tensor) -> Tensor:
        """Return the sum over the ranks."""
        dist.all_reduce(values)
        return values

    def tell(self, text: str | None = None) -> str:
        """Return what the first rank said."""
        said = [text]
        dist.broadcast_object_list(said, src=0)
        return str(said[0])

    def share_threads(self, threads: int | None) -> int:
        """Set up torch for this rank's part of the machine's cores; return its workers, which is one.

        Args:
            threads: of this process; None: those that it may use, shared with the other ranks of the machine.
        """
        torch.set_num_threads(threads or max(1, available_threads() // torchrun("LOCAL_WORLD_SIZE", 1)))
        keep_memory()
        return 1

    def pieces(self, batch: Batch, tokens: int | None) -> list[tuple[Batch, float]]:
        """Return this rank's pieces of a batch that all ranks have, each with its share of the whole batch's loss.

        All ranks get as many: they exchange tokens in every forward pass, and a pipeline has to be filled. One that
        has less learns from a piece a second time, with a share of 0.
        """
        if batch.learnt == 0:
            return []
        texts, data, least = len(batch.segments.lengths), self.place.readers, self.place.least_pieces
        counts = []
        mine: list[tuple[Batch, float]] = []
        for index in range(data):
            first, last = share(texts, data, index)
            if first == last:
                counts.append(1)
                continue
            part, weight = batch.part(first, last)
            parts = part.pieces(least, tokens)
            counts.append(len(parts))
            if index == self.place.reader:
                mine = [(piece, weight * own) for piece, own in parts]
        spare = mine[0][0] if mine else batch.part(0, 1)[0].pieces(1, tokens)[0][0]
        return mine + [(spare, 0.0)] * (max(*counts, least) - len(mine))

    def mean_loss(self, model: Transformer, batches: list[Batch]) -> float:
        """Return what `next_token.mean_loss` does, the batches shared among the ranks."""
        data, index = self.place.readers, self.place.reader
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for number in range(-(-len(batches) // data)):
            own = number * data + index
            batch = batches[min(own, len(batches) - 1)]
            loss = self.mean_loss_of(model, [batch])
            if own < len(batches) and loss is not None:
                targets = int((batch.targets_T != IGNORED).sum())
                sums += torch.tensor([loss * targets, targets], dtype=torch.float64, device=self.device)
        reshard(model)
        loss_sum, targets_sum = self.total(sums).tolist()
        return loss_sum / max(targets_sum, 1)

    def whole(self, part: Tensor, rows: int) -> Tensor:
        """Return the whole of a parameter that is no stack of experts, of which each of `shards` ranks has its rows."""
        count = self.shards.size()
        if count == 1:
            return part
        size = -(-rows // count)
        padded = part.new_zeros(size, *part.shape[1:])
        padded[: part.shape[0]] = part
        parts = [torch.empty_like(padded) for _ in range(count)]
        dist.all_gather(parts, padded, group=self.shards)
        return torch.cat(parts)[:rows]

    def sharers(self, name: str) -> tuple[dist.ProcessGroup, dist.ProcessGroup]:
        """Return the ranks that share the rows of a parameter, and those that have the same rows."""
        if name.endswith(STACKED):
            return self.expert_shards, self.expert_replicas
        return self.shards, self.replicas

    def own(self, name: str, whole: Tensor) -> Tensor:
        """Return this rank's rows of a whole parameter."""
        first, last = self.place.rows(name, whole.shape[0])
        return whole[first:last]

    def written(self, parts: Mapping[str, Tensor], rows: Mapping[str, int]) -> dict[str, Rows]:
        """Return what this rank writes of tensors of which ranks have parts; each row is written by one.

        Args:
            parts: of parameters, of what is kept for them, or of buffers.
            rows: of each whole parameter; what is not here is whole on each rank that has it.
        """
        found = {}
        for name, part in parts.items():
            first, whole = (self.place.rows(name, rows[name])[0], rows[name]) if name in rows else (0, part.shape[0])
            if self.place.writes(name) and part.shape[0] and (name in rows or self.place.reader == 0):
                found[name] = Rows(part, first, whole)
        return found

    def files(self, model: Transformer, rows: Mapping[str, int]) -> Files:
        """Return the files of the model folder that the ranks write together.

        Args:
            model: whose weights are cut.
            rows: of each whole parameter.
        """
        turns = {name: number for number, name in enumerate(rows)}

        def writer(entry: Entry) -> int:
            return self.place.writer(entry.of, entry.row, rows.get(entry.of, 0), turns.get(entry.of, 0))

        return Files.plan(model.config, _dtype(model), writer)

    def share(self, model: Transformer, rows: Mapping[str, int], files: Files) -> Share:
        """Return a copy of the weights that this rank writes, in the processor's memory; all ranks call it.

        Args:
            model: whose weights are cut.
            rows: of each whole parameter.
            files: of the model folder.
        """
        reshard(model)
        mine = {
            layout.name
            for shard, writer in zip(files.shards, files.writers, strict=True)
            for layout in shard
            if writer == self.place.rank
        }
        second = {of: name for name, of in copies(model.config).items()}
        kept: dict[str, Tensor] = {}
        for name, part in (self.local_parameters(model) | dict(model.named_buffers())).items():
            if name.endswith(STACKED):
                found = [*parts_of(name, part, self.place.rows(name, model.config.n_routed_experts)[0])]
            else:
                whole = self.whole(part, rows[name]) if name in rows else part
                found = [Entry(one, whole, name) for one in (name, second.get(name, name))]
            kept |= {one.name: one.target.detach().to("cpu", copy=True) for one in found if one.name in mine}
        return Share(files, self.place.rank, kept)

    def local_parameters(self, model: nn.Module) -> dict[str, Tensor]:
        """Return this rank's rows of each parameter; the same memory, so that a change changes the parameter."""
        found = {}
        for name, one in model.named_parameters():
            first, last = self.place.part(name, one.shape[0])
            found[name] = (one.to_local() if isinstance(one, DTensor) else one[first:last]).detach()
        return found


def join(settings: ParallelSettings, config: ModelConfig, device: str) -> Ranks:
    """Meet the other processes.

    Args:
        settings: how ranks share the work.
        config: the model's.
        device: "cpu" or "cuda": then each process has the GPU of its number on this machine.
    Raises:
        ConfigError: so many ranks cannot share the work that way.
    """
    rank, count = torchrun("RANK", 0), torchrun("WORLD_SIZE", 1)
    check(settings, count, config)
    if device == "cuda":
        torch.cuda.set_device(torchrun("LOCAL_RANK", 0))
    if not dist.is_initialized():
        # torchrun's store outlives a restart, and with it the addresses of ranks that are dead: each start has its own.
        store, _, _ = next(iter(rendezvous("env://", timeout=PATIENCE)))
        store = dist.PrefixStore(f"start-{torchrun('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        backend = "nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
        atexit.register(leave)
    return Ranks(place(rank, count, settings, config), device)


def leave() -> None:
    """Part from the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def reshard(model: nn.Module) -> None:
    """Let go of weights that were gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _dtype(model: nn.Module) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")
