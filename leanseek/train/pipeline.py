"""Pipeline: ranks have some layers each, and torch's schedules say who computes which micro-batch when.

Applied from outside, as `parallel` is: the trainer's loop and its numbers are those of one process. Hidden states go
from rank to rank, and with them what the layers have added to the loss so far, so that the balance loss of every layer
gets its gradient. A rank has its layers' weights whole; rows of the gradients' sums and of the optimiser's state are
shared among `shards` ranks (ZeRO-1, as V3 has it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleDualPipeV, ScheduleZBVZeroBubble

from leanseek.data.batches import Batch
from leanseek.model.config import ModelConfig
from leanseek.model.experts import Routing
from leanseek.model.transformer import Transformer
from leanseek.sections.training import TrainSettings
from leanseek.train.balance import expert_counts
from leanseek.train.expert_parallel import hold_experts
from leanseek.train.objectives.loss import Loss
from leanseek.train.objectives.next_token import cross_entropy
from leanseek.train.parallel import ParallelOptimiser, ParallelTrainer
from leanseek.train.places import Place
from leanseek.train.ranks import Ranks
from leanseek.train.spans import EMBEDDING
from leanseek.train.trainer import Meter, Objective

SCHEDULES = {"1f1b": Schedule1F1B, "zbv": ScheduleZBVZeroBubble, "dualpipev": ScheduleDualPipeV}
# Hidden states and the loss so far; of the last span, the loss.
Passed = Tensor | tuple[Tensor, Tensor]


@runtime_checkable
class PipelineObjective(Protocol):
    """An objective that can be computed on several ranks, one after the other: `next_token.NextToken` is one."""

    def routing(self) -> Routing:
        """Return what layers note their choices in."""

    def on_the_way(self, routing: Routing, batch: Batch) -> Tensor:
        """Return what some layers add to the loss; scalar."""

    def looks_ahead(self, config: ModelConfig, batch: Batch) -> bool:
        """Whether the MTP layer learns from a batch."""

    def figures(self, config: ModelConfig, batch: Batch) -> tuple[str, ...]:
        """Return the names of a batch's metrics."""

    def at_the_end(self, model: Transformer, batch: Batch, hidden_TD: Tensor, on_the_way: Tensor) -> Loss:
        """Return the loss of a batch from its last hidden states, with the counts of the MTP layer alone."""


class Elsewhere(nn.Module):
    """A part of the model that another rank has."""


class Span(nn.Module):
    """The part of the model that one stage of the pipeline computes with.

    Args:
        parts: its modules.
        run: (what came from the span before, number of the micro-batch) -> what goes to the next.
    """

    def __init__(self, parts: list[nn.Module], run: Callable[[tuple[Tensor, ...], int], Passed]) -> None:
        super().__init__()
        self.parts, self.run = nn.ModuleList(parts), run

    def forward(self, *received: Tensor, number: Tensor) -> Passed:
        """Return hidden states and the loss so far; at the end, what is differentiated."""
        return self.run(received, int(number))


class SpanStage(PipelineStage):
    """torch's stage, for micro-batches of any length; a buffer is there only while its micro-batch is on its way.

    Args:
        span: its part of the model.
        index, count: its place among all.
        lengths: tokens of each micro-batch.
        width: of the hidden states.
        dtype: of the hidden states.
        device, group: as torch's.
    """

    def __init__(
        self,
        span: Span,
        index: int,
        count: int,
        lengths: tuple[int, ...],
        width: int,
        dtype: torch.dtype,
        device: torch.device,
        group: dist.ProcessGroup,
    ) -> None:
        # Lengths differ: buffers that torch makes beforehand have none, and the right ones are made when needed.
        hidden = torch.empty(0, width, dtype=dtype, device="meta", requires_grad=True)
        scalar = torch.empty((), device="meta", requires_grad=True)
        number = torch.empty(1, dtype=torch.int64, device="meta")
        inputs = (number,) if index == 0 else (hidden, scalar)
        outputs = (scalar,) if index == count - 1 else (hidden, scalar)
        super().__init__(span, index, count, device, inputs, outputs, group=group)
        self.lengths, self.width, self.dtype = lengths, width, dtype
        self._runtime_validate = False

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Return what receives a micro-batch's hidden states."""
        self._make_room(self.args_recv_info[fwd_chunk_id], fwd_chunk_id)
        return super().get_fwd_recv_ops(fwd_chunk_id)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Return what receives their gradients."""
        self._make_room(self.grad_recv_info[bwd_chunk_id], bwd_chunk_id)
        return super().get_bwd_recv_ops(bwd_chunk_id)

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True, last_backward: bool = False
    ) -> None:
        """Pass backward, and let go of the buffers."""
        super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)
        for info in (*self.args_recv_info[bwd_chunk_id], *self.grad_recv_info[bwd_chunk_id]):
            info.buffer = None

    def _make_room(self, infos: tuple[Any, ...], number: int) -> None:
        for info, shape, dtype in zip(
            infos, ((self.lengths[number], self.width), ()), (self.dtype, torch.float32), strict=False
        ):
            if not info.is_root_arg:
                info.buffer = torch.empty(shape, dtype=dtype, device=self.device)


class Pipeline:
    """This rank's spans at work.

    Args:
        ranks: that train together.
        model: of which this rank has a part.
        objective: that can be parted.
    """

    def __init__(self, ranks: Ranks, model: Transformer, objective: PipelineObjective) -> None:
        assert ranks.place.spans is not None, "there is a pipeline"
        self.ranks, self.model, self.objective = ranks, model, objective
        self.spans = ranks.place.spans
        self.mine = self.spans.of_rank(ranks.place.pipeline_rank)
        self.last = self.spans.count - 1
        self.modules = [Span(self._parts(one), partial(self._run, one)) for one in self.mine]
        self.pieces: list[tuple[Batch, float]] = []
        self._lengths: tuple[int, ...] = ()
        self._schedule: Any = None
        self._counts: list[dict[int, Tensor]] = []
        self._ends: dict[int, Loss] = {}

    def passes(self, pieces: list[tuple[Batch, float]]) -> list[Loss]:
        """Pass forward and backward through all pieces; return their losses, where the end is elsewhere of zeros."""
        lengths = tuple(piece.segments.tokens for piece, _ in pieces)
        if lengths != self._lengths:
            self._lengths, self._schedule = lengths, self._scheduled(lengths)
        self.pieces, self._counts, self._ends = pieces, [{} for _ in pieces], {}
        numbers = torch.arange(len(pieces))
        begins = (numbers,) if 0 in self.mine else ()
        target = numbers if self.last in self.mine else None
        self._schedule.step(*begins, target=target, return_outputs=False, number=numbers)
        return [self._loss(number) for number in range(len(pieces))]

    @torch.no_grad()
    def mean_loss(self, model: Transformer, batches: list[Batch]) -> float | None:
        """Return the mean next-token loss of one batch on the rank that has the end, None on the others."""
        (batch,) = batches
        self.pieces, self._counts = [(batch, 1.0)], [{}]
        received: tuple[Tensor, ...] = ()
        for one in self.mine:
            if one and one - 1 not in self.mine:
                hidden = torch.empty(
                    batch.segments.tokens, model.config.hidden_size, dtype=self._dtype, device=self.ranks.device
                )
                received = (hidden, torch.zeros((), device=self.ranks.device))
                dist.recv(hidden, self._rank_of(one - 1), group=self.ranks.pipeline)
            received = self._through(one, received, 0)
            if one < self.last and one + 1 not in self.mine:
                dist.send(received[0], self._rank_of(one + 1), group=self.ranks.pipeline)
        return float(cross_entropy(model, received[0], batch.targets_T)) if self.last in self.mine else None

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    def _rank_of(self, span: int) -> int:
        """Return the rank, among all, that has another span of the same part of the batch."""
        place = self.ranks.place
        found = next(one for one in range(place.settings.pipeline) if span in self.spans.of_rank(one))
        return found * place.readers + place.reader

    def _parts(self, span: int) -> list[nn.Module]:
        model = self.model
        parts: list[nn.Module] = [model.model.layers[layer] for layer in self.spans.layers[span]]
        if span == 0:
            parts.append(model.model.embed_tokens)
        if span == self.last:
            parts += [model.model.norm, model.lm_head]
            parts += [] if model.mtp_layer is None else [model.mtp_layer, model.model.embed_tokens]
        return parts

    def _scheduled(self, lengths: tuple[int, ...]) -> Any:
        """Return torch's schedule for micro-batches of these lengths."""
        width, device = self.model.config.hidden_size, torch.device(self.ranks.device)
        stages = [
            SpanStage(module, one, self.spans.count, lengths, width, self._dtype, device, self.ranks.pipeline)
            for one, module in zip(self.mine, self.modules, strict=True)
        ]
        name = self.spans.settings.schedule
        # Each piece's loss is weighted by its share of the batch: gradients are summed as they are.
        return SCHEDULES[name](
            stages[0] if name == "1f1b" else stages, len(lengths), loss_fn=_as_it_is, scale_grads=False
        )

    def _run(self, span: int, received: tuple[Tensor, ...], number: int) -> Passed:
        """Return what a span gives to the next; the last one, what is differentiated of a micro-batch."""
        hidden_TD, so_far = self._through(span, received, number)
        if span < self.last:
            return hidden_TD, so_far
        # The head is part of the span: torch lets go of what a span gives before its weights' gradients are made.
        piece, share = self.pieces[number]
        loss = self.objective.at_the_end(self.model, piece, hidden_TD, so_far)
        self._ends[number] = replace(loss, total=loss.total.detach())
        self._counts[number] |= dict(zip((self.model.config.num_hidden_layers,), loss.counts, strict=False))
        return loss.total * share

    def _through(self, span: int, received: tuple[Tensor, ...], number: int) -> tuple[Tensor, Tensor]:
        batch, model = self.pieces[number][0], self.model
        routing = self.objective.routing()
        if span == 0:
            x_TD, so_far = model.model.embed_tokens(batch.tokens_T), torch.zeros((), device=self.ranks.device)
        else:
            x_TD, so_far = received
        layers = self.spans.layers[span]
        x_TD = model.through([model.model.layers[layer] for layer in layers], x_TD, batch.segments, None, routing)
        mixed = [layer for layer in layers if model.config.is_moe(layer)]
        counts = expert_counts(routing, model.config.n_routed_experts)
        self._counts[number] |= dict(zip(mixed, counts, strict=True))
        so_far = so_far + self.objective.on_the_way(routing, batch)
        return (model.model.norm(x_TD) if span == self.last else x_TD), so_far

    def _loss(self, number: int) -> Loss:
        """Return a piece's loss, with the choices that this rank's layers made and zeros for the others'."""
        config, piece = self.model.config, self.pieces[number][0]
        ahead = self.objective.looks_ahead(config, piece)
        layers = [layer for layer in range(config.num_hidden_layers + ahead) if config.is_moe(layer)]
        nothing = torch.zeros(config.n_routed_experts, dtype=torch.int64, device=self.ranks.device)
        counts = [self._counts[number].get(layer, nothing) for layer in layers]
        end = self._ends.get(number)
        if end is not None:
            return replace(end, counts=counts)
        figures = dict.fromkeys(self.objective.figures(config, piece), 0.0)
        return Loss(torch.zeros(()), figures, 0, 0, 0, mtp=ahead, counts=counts)


class PipelineOptimiser(ParallelOptimiser):
    """The optimiser on this rank's rows of what its run has whole; the others send theirs after a step.

    Args:
        model, settings, ranks, rows: as `ParallelOptimiser`.
    """

    def take_gradients(self) -> None:
        """Take over the rows of the gradients, summed over all parts of the batch and both copies of the embedding."""
        for name, local in {**self.matrices, **self.others}.items():
            gradient = self.model_parameters[name].grad
            self.model_parameters[name].grad = None
            local.grad = None if gradient is None else self._summed(name, gradient)
            if name == EMBEDDING:
                local.grad = self._with_copy(torch.zeros_like(local) if local.grad is None else local.grad)

    @torch.no_grad()
    def step(self, lr_factor: float) -> None:
        """Apply one update, and gather the rows."""
        super().step(lr_factor)
        for name, local in {**self.matrices, **self.others}.items():
            shards, _ = self.ranks.sharers(name)
            whole = self.model_parameters[name].detach()
            if shards.size() > 1:
                whole.copy_(self.ranks.gathered(local, shards, whole.shape[0]))

    def _with_copy(self, gradient: Tensor) -> Tensor:
        """Return the sum of the gradients of the embedding's copies, where there are two; the same bits on both."""
        place = self.ranks.place
        assert place.spans is not None, "there is a pipeline"
        others = [one for one in place.spans.holders(EMBEDDING) if one != place.pipeline_rank]
        if not others:
            return gradient
        found, there = torch.empty_like(gradient), others[0] * place.readers + place.reader
        both = [(dist.isend, gradient.contiguous()), (dist.irecv, found)]
        for work in dist.batch_isend_irecv([dist.P2POp(do, one, there, self.ranks.pipeline) for do, one in both]):
            work.wait()
        return gradient + found

    def _summed(self, name: str, gradient: Tensor) -> Tensor:
        shards, replicas = self.ranks.sharers(name)
        if shards.size() > 1:
            first, last = self.ranks.place.part(name, gradient.shape[0])
            size = -(-gradient.shape[0] // shards.size())
            padding = size * shards.size() - gradient.shape[0]
            padded = F.pad(gradient, (0, 0) * (gradient.ndim - 1) + (0, padding)) if padding else gradient.contiguous()
            rows = gradient.new_empty(size, *gradient.shape[1:])
            dist.reduce_scatter_tensor(rows, padded, group=shards)
            gradient = rows[: last - first]
        if replicas.size() > 1:
            dist.all_reduce(gradient, group=replicas)
        return gradient


def _as_it_is(output: Tensor, target: Tensor) -> Tensor:
    """The last span's loss, as torch asks for it."""
    return output


def keep_own(model: Transformer, place: Place) -> None:
    """Let go of what other ranks of the pipeline have."""
    body = model.model
    for number in range(len(body.layers)):
        if not place.holds(f"model.layers.{number}."):
            body.layers[number] = Elsewhere()
    for owner, name, parameter in (
        (body, "embed_tokens", EMBEDDING),
        (body, "norm", "model.norm.weight"),
        (model, "lm_head", "lm_head.weight"),
    ):
        if not place.holds(parameter):
            setattr(owner, name, Elsewhere())


def apply(model: Transformer, ranks: Ranks) -> dict[str, int]:
    """Cut a model in place, so that this rank keeps its spans; return the rows that each whole parameter had."""
    rows = {name: one.shape[0] for name, one in model.named_parameters()}
    keep_own(model, ranks.place)
    if ranks.place.settings.experts > 1:
        hold_experts(model, ranks.place.expert_index, ranks.experts)
    return rows


class PipelineTrainer(ParallelTrainer):
    """The trainer of one process, on this rank's spans of the model.

    Args:
        ranks, model, objective, settings, meter: as `ParallelTrainer`; the objective can be parted.
    """

    apply = staticmethod(apply)
    optimiser_kind = PipelineOptimiser

    def __init__(
        self, ranks: Ranks, model: Transformer, objective: Objective, settings: TrainSettings, meter: Meter
    ) -> None:
        super().__init__(ranks, model, objective, settings, meter)
        assert isinstance(objective, PipelineObjective), "pretraining's is"
        self.pipeline = Pipeline(ranks, model, objective)
        ranks.mean_loss_of = self.pipeline.mean_loss

    def _weights(self) -> dict[str, Tensor]:
        return {name: one.detach() for name, one in (*self.model.named_parameters(), *self.model.named_buffers())}

    def _whole(self, named: Mapping[str, Tensor]) -> dict[str, Any]:
        part = self.ranks.place.part
        return super()._whole({n: t[slice(*part(n, t.shape[0]))] if n in self.rows else t for n, t in named.items()})

    def _own(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        place = self.ranks.place
        return {n: t[slice(*place.kept(n, t.shape[0]))] for n, t in named.items() if place.holds(n)}

    def _passes(self, pieces: list[tuple[Any, float]]) -> list[Loss]:
        return self.pipeline.passes(pieces)
