"""Parallel: the trainer's loop over many processes: FSDP2 by blocks, experts apart, Muon on whole matrices.

Applied from outside: the model, the objective and the loop are those of one process, and so are the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from leanseek.checkpoint.share import Share
from leanseek.model.experts import DeepSeekMoE
from leanseek.model.transformer import MTPLayer, Transformer
from leanseek.sections.training import OptimiserSettings, TrainSettings
from leanseek.train.expert_parallel import hold_experts
from leanseek.train.interrupt import Interrupt
from leanseek.train.objectives.loss import Loss
from leanseek.train.objectives.next_token import mean_loss
from leanseek.train.optimisers import STATE, Optimiser, orthogonalise
from leanseek.train.places import STACKED, share
from leanseek.train.ranks import Ranks
from leanseek.train.trainer import Batches, Meter, Objective, Trainer


def apply(model: Transformer, ranks: Ranks) -> dict[str, int]:
    """Cut a model in place, so that this rank keeps its part; return the rows that each whole parameter had.

    Args:
        model: whole, and the same on all ranks.
        ranks: who keeps what.
    """
    rows = {name: one.shape[0] for name, one in model.named_parameters()}
    if ranks.place.settings.experts > 1:
        hold_experts(model, ranks.place.expert_index, ranks.experts)
    again = ranks.place.settings.shards > 1  # weights gathered for the forward pass are let go, and gathered again
    for block in model.model.layers:
        if ranks.place.settings.experts > 1 and isinstance(block.mlp, DeepSeekMoE):
            fully_shard(block.mlp.experts, mesh=ranks.expert_mesh, reshard_after_forward=ranks.place.expert_shards > 1)
        # `join` and the norm of the MTP layer are called outside its `forward`: they go with the embedding.
        for part in (block.self_attn, block.mlp) if isinstance(block, MTPLayer) else (block,):
            fully_shard(part, mesh=ranks.mesh, reshard_after_forward=again)
    fully_shard(model, mesh=ranks.mesh, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Each rank's loss is weighted by its share of the batch: gradients are summed, not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    return rows


class ParallelOptimiser(Optimiser):
    """The optimiser on this rank's rows of each parameter; Muon still sees whole matrices.

    Args:
        model: after `apply`.
        settings: as `Optimiser`.
        ranks: who has the other rows.
        rows: of each whole parameter, from `apply`.
    """

    def __init__(self, model: nn.Module, settings: OptimiserSettings, ranks: Ranks, rows: Mapping[str, int]) -> None:
        self.ranks, self.rows = ranks, rows
        self.model_parameters = dict(model.named_parameters())
        super().__init__(model, settings)

    def named(self, model: nn.Module) -> dict[str, Tensor]:
        """Return this rank's rows."""
        return self.ranks.local_parameters(model)

    def take_gradients(self) -> None:
        """Take over what the backward pass left in the model's parameters."""
        for name, local in {**self.matrices, **self.others}.items():
            gradient = self.model_parameters[name].grad
            local.grad = None if gradient is None else gradient.to_local()
            self.model_parameters[name].grad = None

    @torch.no_grad()
    def clip(self) -> float:
        """Scale gradients to the settings' largest norm, over all ranks; return the norm before."""
        named = {**self.matrices, **self.others}
        found = {name: local.grad for name, local in named.items() if local.grad is not None}
        square = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        for name, gradient in found.items():
            # Several ranks have the same rows, and each would count them.
            square += gradient.float().square().sum(dtype=torch.float64) / self.ranks.place.copies(name)
        norm = float(self.ranks.total(square).sqrt())
        if norm > self.settings.clip:
            torch._foreach_mul_(list(found.values()), self.settings.clip / norm)
        return norm

    def zero_grad(self) -> None:
        """Forget the gradients."""
        super().zero_grad()
        for parameter in self.model_parameters.values():
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's rows of everything that a resumed run needs: `checkpoint.parts` puts them together."""
        return {"steps": self.steps} | {group: self.ranks.written(getattr(self, group), self.rows) for group in STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over this rank's rows of a state that `state_dict` gave, on however many ranks."""
        own = {
            group: {name: self.ranks.own(name, state[group][name]) for name in getattr(self, group)} for group in STATE
        }
        super().load_state_dict({"steps": state["steps"], **own})

    def _kind(self, name: str, piece: Tensor) -> tuple[int, int, bool]:
        if name.endswith(STACKED) or self.ranks.shards.size() == 1:
            return super()._kind(name, piece)
        return self.rows[name], piece.shape[-1], True

    def _updates(self, kind: tuple[int, int, bool], pieces: list[Tensor]) -> Tensor:
        """Orthogonalise; of matrices that are cut by rows, each rank gathers some, and sends the rows back."""
        rows, columns, is_cut = kind
        if not is_cut:
            return super()._updates(kind, pieces)
        group = self.ranks.shards
        count, me = group.size(), group.rank()
        heights = [last - first for first, last in (share(rows, count, index) for index in range(count))]
        out: list[Tensor] = []
        for begin in range(0, len(pieces), count):
            some = pieces[begin : begin + count]
            # Rank i gathers the i-th of these; towards the end there may be fewer than ranks.
            mine = me < len(some)
            away = [heights[me] * columns if index < len(some) else 0 for index in range(count)]
            home = [height * columns if mine else 0 for height in heights]
            whole = some[0].new_empty(sum(home))
            dist.all_to_all_single(whole, torch.cat([one.reshape(-1) for one in some]), home, away, group=group)
            if mine:
                whole = orthogonalise(whole.view(rows, columns)).reshape(-1).contiguous()
            back = some[0].new_empty(sum(away))
            dist.all_to_all_single(back, whole, away, home, group=group)
            out += back.view(len(some), heights[me], columns).unbind(0)
        return torch.stack(out)


class ParallelTrainer(Trainer):
    """The trainer of one process, on this rank's part of the model and of each batch.

    Args:
        ranks: that train together.
        model: whole; it is cut in place.
        objective, settings, meter: as `Trainer`; the meter is charged with the work of all ranks.
    """

    apply = staticmethod(apply)
    optimiser_kind: type[ParallelOptimiser] = ParallelOptimiser

    def __init__(
        self, ranks: Ranks, model: Transformer, objective: Objective, settings: TrainSettings, meter: Meter
    ) -> None:
        self.ranks = ranks
        self.rows = self.apply(model, ranks)
        self.files = ranks.files(model, self.rows)
        optimiser = partial(self.optimiser_kind, ranks=ranks, rows=self.rows)
        super().__init__(model, objective, settings, meter, optimiser=optimiser)
        ranks.mean_loss_of = partial(mean_loss, most_logits=settings.most_logits)

    def share(self) -> Share:
        """Return a copy of the weights that this rank writes into checkpoints; all ranks call it."""
        return self.ranks.share(self.model, self.rows, self.files)

    def _weights(self) -> dict[str, Tensor]:
        return {**self.ranks.local_parameters(self.model), **dict(self.model.named_buffers())}

    def _whole(self, named: Mapping[str, Tensor]) -> dict[str, Any]:
        return self.ranks.written(named, self.rows)

    def _own(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.ranks.own(name, one) if name in self.rows else one[:] for name, one in named.items()}

    def _gradients(self, batch: Any) -> dict[str, float]:
        pieces = self.ranks.pieces(batch, self.settings.micro_tokens)
        if not pieces:
            return {}
        losses = self._passes(pieces)
        assert isinstance(self.optimiser, ParallelOptimiser)
        self.optimiser.take_gradients()
        joined = self._joined_over_ranks(losses, [weight for _, weight in pieces])
        self._charge([joined])
        self._counts = joined.counts
        return joined.metrics

    def _passes(self, pieces: list[tuple[Any, float]]) -> list[Loss]:
        """Pass forward and backward through each of this rank's pieces; return their losses."""
        losses = []
        for piece, weight in pieces:
            loss = self.objective(self.model, piece)
            (loss.total * weight).backward()
            losses.append(loss)
        return losses

    def _joined_over_ranks(self, losses: list[Loss], weights: list[float]) -> Loss:
        """Return the figures of the whole batch: what all ranks read, chose and lost."""
        names, layers = sorted(losses[0].metrics), len(losses[0].counts)
        experts = self.model.config.n_routed_experts or 0
        sums = torch.zeros(3 + len(names) + layers * experts, dtype=torch.float64, device=self.ranks.device)
        for loss, weight in zip(losses, weights, strict=True):
            if weight:  # else it stood in for none
                figures = [loss.tokens, loss.pairs, loss.head_tokens, *(loss.metrics[n] * weight for n in names)]
                sums[: len(figures)] += torch.tensor(figures, dtype=torch.float64, device=sums.device)
                if layers:
                    sums[len(figures) :] += torch.cat(loss.counts)
        total = self.ranks.total(sums).tolist()
        counts = torch.tensor(total[3 + len(names) :], device=sums.device).view(layers, experts) if layers else []
        metrics = dict(zip(names, total[3:], strict=False))
        read = (int(one) for one in total[:3])
        return Loss(losses[0].total, metrics, *read, mtp=losses[0].mtp, counts=[*counts])

    def _wants_to_stop(self, interrupt: Interrupt) -> bool:
        # A signal may reach the ranks in different steps; they stop after the same one.
        return self.ranks.agree(float(interrupt.wanted)) > 0

    def _steps_in_budget(self, batches: Batches) -> int:
        return int(self.ranks.agree(float(super()._steps_in_budget(batches))))
