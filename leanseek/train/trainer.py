"""Trainer: the one loop of pretraining, SFT and GRPO: batch -> loss -> backward -> clip -> step -> balance."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from leanseek.errors import RunError
from leanseek.kernels.threads import run_all
from leanseek.log import Progress
from leanseek.model.count import forward_parts, moe_layers, training_parts
from leanseek.model.transformer import Transformer
from leanseek.sections.training import OptimiserSettings, TrainSettings
from leanseek.train.average import Average
from leanseek.train.balance import load_factor, loads, update_bias
from leanseek.train.interrupt import Interrupt, interrupts
from leanseek.train.objectives.loss import Loss
from leanseek.train.optimisers import Optimiser
from leanseek.train.schedules import balance_rate, lr_factor
from leanseek.train.spikes import Spikes

# Of the logged rows, one in so many says how much each expert was used since the last that did.
ROWS_PER_LOAD = 6
# Steps that are timed, without an update, to turn a time budget into a number of steps.
PROBES = 3
# Metrics of which a batch shows its parts' largest value; of the others, the mean.
LARGEST = ("logprob_gap", "stale_gap")
# Metrics that compare the model with the one that sampled: of several steps on a batch, the first one's are shown.
AT_FIRST = (
    *("logprob_gap", "logprob_gap_mean", "routing_agreement"),
    *("stale_gap", "stale_gap_mean", "stale_routing"),
)


class TrainingBatch(Protocol):
    """What the trainer needs to know of a batch; each objective has its own kind."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """Figures of how the batch came about, for the log."""

    def pieces(self, count: int, tokens: int | None) -> list[tuple[Any, float]]:
        """Return about `count` parts of about equal size, or more, so that each has about `tokens` tokens at most.

        Each comes with its share of the loss. There may be fewer, where there is too little to part, and none where
        there is nothing to learn.
        """

    def to(self, device: torch.device | str) -> TrainingBatch:
        """Return the batch on a device."""


@runtime_checkable
class Parted(Protocol):
    """A batch that several optimiser steps are taken on."""

    def updates(self) -> Sequence[TrainingBatch]:
        """Return what each step is over, in order."""


class Meter(Protocol):
    """Where work is charged: a `cost.ledger` charge, or anything that counts the same."""

    tokens: int

    def add_flops(self, forward: float = 0, backward: float = 0, recompute: float = 0, part: str | None = None) -> None:
        """Add operations of a pass, and of a part of the model."""

    def timed(self, part: str) -> AbstractContextManager[None]:
        """Count the seconds inside to a part of the work."""


Objective = Callable[[Transformer, Any], Loss]
Batches = Callable[[int], TrainingBatch]


@dataclass(frozen=True)
class Hooks:
    """What a stage has done along the way.

    Args:
        log: called after a logged step with its number and metrics.
        save: called with the number of steps done and the trainer's state.
        validate: called every `validate_every` steps, and at the end; returns metrics.
        enough: whether validation metrics say that the stage may end early.
        check: called after each step; raises what went wrong beside the loop.
        note: what the person at the terminal is told beside the loss.
    """

    log: Callable[[int, dict[str, Any]], None]
    save: Callable[[int, dict[str, Any]], None]
    validate: Callable[[], dict[str, float]] | None = None
    enough: Callable[[Mapping[str, float]], bool] | None = None
    check: Callable[[], None] | None = None
    note: Callable[[], str] | None = None


class Trainer:
    """Trains a model in place.

    Args:
        model: its weights are changed.
        objective: (model, batch) -> Loss.
        settings: of the stage.
        meter: tokens and FLOPs are added to it.
        workers: threads that share a step's batch; they meet when their gradients are summed.
        optimiser: makes the optimiser; it decides which parameters learn.
    """

    def __init__(
        self,
        model: Transformer,
        objective: Objective,
        settings: TrainSettings,
        meter: Meter,
        workers: int = 1,
        optimiser: Callable[[Transformer, OptimiserSettings], Optimiser] = Optimiser,
    ) -> None:
        self.model, self.objective, self.settings, self.meter = model, objective, settings, meter
        self.workers = workers
        self.optimiser = optimiser(model, settings.optimiser)
        self.spikes = None if settings.skip_spikes is None else Spikes(settings.skip_spikes)
        model.recompute = settings.recompute
        self.done = 0
        self.steps: int | None = settings.steps
        self.ended = False
        self.best: dict[str, float] | None = None  # the lowest validation loss, and the step that had it
        averages = settings.ema is not None or settings.average_from is not None
        self.average = Average(self._weights(), settings) if averages else None
        self._counts: list[torch.Tensor] = []  # of the newest batch: per MoE layer, the use of each expert
        self._used: torch.Tensor | None = None  # the same but of the MTP layer, summed since it was last written down

    def step(self, batch: TrainingBatch) -> dict[str, float]:
        """Take the optimiser steps of a batch, one as a rule; return its metrics: none where it teaches nothing.

        Raises:
            RunError: the loss or the gradient is not finite, or too many steps in a row had to be skipped; no step
                of these has changed the weights.
        """
        found = [metrics for part in _updates(batch) if (metrics := self._update(part))]
        if len(found) < 2:
            return found[0] if found else {}
        return _joined(found, [1 / len(found)] * len(found)) | {k: found[0][k] for k in AT_FIRST if k in found[0]}

    def _update(self, batch: TrainingBatch) -> dict[str, float]:
        """Take one optimiser step."""
        metrics = self._gradients(batch)
        if not metrics:
            return {}
        metrics["gradient_norm"] = norm = self.optimiser.clip()
        if self.spikes is not None and self.spikes.is_one(norm):
            self.optimiser.zero_grad()
            return metrics | {"skipped": 1.0}
        if not math.isfinite(norm):
            loss = metrics.get("loss", math.nan)
            raise RunError(
                f"step {self.done + 1}: the loss is {loss:.4g} and its gradient's norm is {norm}; no weight "
                "was changed; start afresh (--fresh) with a lower learning rate"
            )
        metrics["lr_factor"] = factor = lr_factor(self.done, self.steps or self.done + 1, self.settings)
        self.optimiser.step(factor)
        self.optimiser.zero_grad()
        update_bias(self.model, self._counts, balance_rate(self.done, self.steps or self.done + 1, self.settings))
        if counts := self._counts[: moe_layers(self.model.config)]:
            metrics["load_factor"] = load_factor(counts)
            self._used = torch.stack(counts) if self._used is None else self._used + torch.stack(counts)
        return metrics

    def fit(self, batches: Batches, hooks: Hooks, progress: Progress) -> None:
        """Train until the stage's steps are done; go on from `load_state_dict` if that was called.

        Args:
            batches: step -> batch; one that has nothing to learn from counts as a step too.
            hooks: what to do along the way.
            progress: shown to the person at the terminal.
        Raises:
            KeyboardInterrupt: Ctrl-C; the state was saved.
        """
        self.model.train()
        if self.steps is None:
            self.steps = self._steps_in_budget(batches)
        progress.total = self.steps
        progress.start_at(self.done)
        every = max(1, self.steps // 300)
        with interrupts() as interrupt:
            while self.done < self.steps and not self.ended:
                start_s, tokens = time.monotonic(), self.meter.tokens
                with self.meter.timed("batches"):
                    batch = batches(self.done)
                self.model.train()
                with self.meter.timed("learning"):
                    metrics: dict[str, Any] = dict(batch.metrics) | self.step(batch.to(self.model.device))
                self.done += 1
                if self.average is not None:
                    self.average.update(self.done, self.steps)
                metrics["tokens_per_s"] = (self.meter.tokens - tokens) / (time.monotonic() - start_s)
                if "skipped" in metrics:
                    progress.say(f"  step {self.done} skipped: its gradient's norm is {metrics['gradient_norm']:.3g}")
                last = self.done == self.steps
                watched = hooks.validate is not None and (last or self.done % self.settings.validate_every == 0)
                best = False
                if watched and hooks.validate is not None:
                    with self._averaged(), self.meter.timed("looks"):
                        measured = hooks.validate()
                    metrics |= measured
                    best = self._is_best(measured)
                    self.ended = hooks.enough is not None and hooks.enough(measured)
                    progress.say(f"  step {self.done}: " + ", ".join(f"{k} {v:.3f}" for k, v in measured.items()))
                if self._used is not None and (last or self.done % (ROWS_PER_LOAD * every) == 0):
                    metrics["expert_load"], self._used = loads(self._used), None
                if last or watched or self.done % every == 0 or "skipped" in metrics:
                    hooks.log(self.done, metrics)
                told = [f"{k} {metrics[k]:.3f}" for k in ("loss", "reward") if k in metrics]
                progress.advance(note=", ".join(told if hooks.note is None else [*told, hooks.note()]))
                stops = self._wants_to_stop(interrupt)
                due = self.done % self.settings.checkpoint_every == 0 or (best and self.settings.keep_best)
                if last or self.ended or stops or due:
                    with self._averaged(), self.meter.timed("saving"):
                        hooks.save(self.done, self.state_dict())
                if stops:
                    raise KeyboardInterrupt
                if hooks.check is not None:
                    hooks.check()
        if self.average is not None:
            self.average.settle()
        self.model.eval()

    def state_dict(self) -> dict[str, Any]:
        """Return everything, beside the weights, that an exact continuation needs."""
        state = {"done": self.done, "steps": self.steps, "ended": self.ended, "optimiser": self.optimiser.state_dict()}
        state |= {} if self._used is None else {"used": self._used}
        state |= {} if self.best is None else {"best": self.best}
        if self.average is not None:
            state["average"] = {kind: self._whole(named) for kind, named in self.average.state_dict().items()}
        return state if self.spikes is None else state | {"spikes": self.spikes.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state that `state_dict` gave."""
        self.done, self.steps, self.ended = int(state["done"]), int(state["steps"]), bool(state["ended"])
        self.optimiser.load_state_dict(state["optimiser"])
        self._used, self.best = state.get("used"), state.get("best")
        if self.average is not None:
            self.average.load_state_dict({kind: self._own(named) for kind, named in state["average"].items()})
        if self.spikes is not None and "spikes" in state:
            self.spikes.load_state_dict(state["spikes"])

    def _averaged(self) -> AbstractContextManager[None]:
        """Show the mean of the weights inside the block, where one is kept."""
        return nullcontext() if self.average is None else self.average.shown()

    def _is_best(self, measured: Mapping[str, float]) -> bool:
        """Whether a validation loss is the lowest so far; it is then remembered."""
        loss = measured.get("validation_loss")
        if loss is None or (self.best is not None and not loss < self.best["validation_loss"]):
            return False
        self.best = {"step": self.done, "validation_loss": loss}
        return True

    def _weights(self) -> dict[str, torch.Tensor]:
        """Return all that checkpoints hold of the model and that is here; the very tensors, router biases too."""
        return dict(self.model.state_dict())

    def _whole(self, named: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Return what is written of the tensors that `_weights` named."""
        return dict(named)

    def _own(self, named: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return what is here of whole tensors."""
        return dict(named)

    def _gradients(self, batch: TrainingBatch) -> dict[str, float]:
        """Fill the gradients from a batch, its parts shared among the workers, and charge the work."""
        pieces = batch.pieces(self.workers, self.settings.micro_tokens)
        if not pieces:
            return {}
        parameters = [p for p in self.model.parameters() if p.requires_grad]

        def task(worker: int) -> Callable[[], tuple[list[Loss], list[torch.Tensor | None]]]:
            return lambda: self._work(pieces[worker :: self.workers], parameters)

        done = run_all([task(worker) for worker in range(min(self.workers, len(pieces)))])
        # Summed in the workers' order, so that the same pieces always give the same bits.
        for parameter, *gradients in zip(parameters, *(sums for _, sums in done), strict=True):
            found = [gradient for gradient in gradients if gradient is not None]
            parameter.grad = found[0] if found else None
            for gradient in found[1:]:
                parameter.grad += gradient
        losses = [loss for worker_losses, _ in done for loss in worker_losses]
        shares = [share for worker in range(self.workers) for _, share in pieces[worker :: self.workers]]
        self._charge(losses)
        self._counts = [torch.stack(layer).sum(0) for layer in zip(*(loss.counts for loss in losses), strict=True)]
        return _joined([loss.metrics for loss in losses], shares)

    def _charge(self, losses: Sequence[Loss]) -> None:
        """Charge the work behind some losses."""
        for loss in losses:
            self.meter.tokens += loss.tokens
            read = {"tokens": loss.tokens, "pairs": loss.pairs, "head_tokens": loss.head_tokens}
            for part, (forward, backward) in training_parts(self.model.config, **read, mtp=loss.mtp).items():
                self.meter.add_flops(forward, backward, part=part)
                if self._computed_anew(part):
                    self.meter.add_flops(recompute=forward, part=part)
            for part, flops in forward_parts(self.model.config, **read).items() if loss.references else ():
                self.meter.add_flops(loss.references * flops, part=part)
            if loss.other_flops:
                self.meter.add_flops(loss.other_flops)

    def _wants_to_stop(self, interrupt: Interrupt) -> bool:
        """Whether the stage is to stop after this step."""
        return interrupt.wanted

    def _computed_anew(self, part: str) -> bool:
        """Whether a part of the model runs forward twice, the second time for the gradient."""
        if part == "head":
            return self.settings.most_logits is not None
        return self.settings.recompute and part != "mtp"

    def _work(
        self, pieces: Sequence[tuple[Any, float]], parameters: list[torch.nn.Parameter]
    ) -> tuple[list[Loss], list[torch.Tensor | None]]:
        """One worker's part: losses and summed gradients of its pieces."""
        losses: list[Loss] = []
        sums: list[torch.Tensor | None] = [None] * len(parameters)
        for piece, share in pieces:
            loss = self.objective(self.model, piece)
            gradients = torch.autograd.grad(loss.total * share, parameters, allow_unused=True)
            for i, gradient in enumerate(gradients):
                known = sums[i]
                if gradient is not None:
                    sums[i] = gradient if known is None else known.add_(gradient)
            losses.append(loss)
        return losses, sums

    def _steps_in_budget(self, batches: Batches) -> int:
        """Time a few batches, forward and backward, and return how many steps fit the stage's minutes."""
        budget_s = (self.settings.minutes or 1.0) * 60
        times_s = []
        for probe in range(PROBES):
            start_s = time.monotonic()
            for part in _updates(batches(probe).to(self.model.device)):
                self._gradients(part)
                self.optimiser.zero_grad()
            times_s.append(time.monotonic() - start_s)
        # The optimiser's own time is about a tenth of a step.
        return max(1, int((budget_s - sum(times_s)) / (1.1 * sorted(times_s)[PROBES // 2])))


def _updates(batch: TrainingBatch) -> Sequence[TrainingBatch]:
    """Return what each optimiser step of a batch is over: the whole, for all kinds but those that say otherwise."""
    return batch.updates() if isinstance(batch, Parted) else (batch,)


def _joined(metrics: Sequence[Mapping[str, float]], shares: Sequence[float]) -> dict[str, float]:
    """Return the parts' metrics as the whole batch's: means by share, but the largest of those in LARGEST."""
    joined: dict[str, float] = {}
    for one, share in zip(metrics, shares, strict=True):
        for name, value in one.items():
            if name in LARGEST:
                joined[name] = max(joined.get(name, value), value)
            else:
                joined[name] = joined.get(name, 0.0) + value * share
    return joined
