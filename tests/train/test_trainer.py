"""The training loop: the same gradients however a batch is parted, and what happens between steps."""

from __future__ import annotations

import io
import math
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from rich.console import Console

import leanseek.train.trainer as module
from leanseek.cost.ledger import Charge
from leanseek.data.batches import Batch, TokenStream, packed_examples
from leanseek.errors import RunError
from leanseek.log import progress
from leanseek.model.count import forward_parts, training_flops
from leanseek.sections.training import TrainSettings
from leanseek.train.objectives.grpo import GroupBatch
from leanseek.train.objectives.next_token import NextToken
from leanseek.train.trainer import Hooks, Trainer

OBJECTIVE = NextToken(mtp_weight=0.3, balance_loss=1e-3)
STREAM = TokenStream(torch.randint(0, 320, (900,), generator=torch.Generator().manual_seed(0)), 16, 6, 0, bos_id=0)


@dataclass
class Diary:
    """Hooks that write down what they are called with."""

    logged: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    saved: list[tuple[int, dict[str, Any]]] = field(default_factory=list)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.logged.append((step, metrics))

    def save(self, step: int, state: dict[str, Any]) -> None:
        self.saved.append((step, state))

    def hooks(self, **others: Any) -> Hooks:
        return Hooks(**({"log": self.log, "save": self.save} | others))

    @property
    def steps_saved(self) -> list[int]:
        return [step for step, _ in self.saved]


def fit(trainer: Trainer, hooks: Hooks, batches: Callable[[int], Any] = STREAM.batch) -> None:
    with progress(None, "test", console=Console(file=io.StringIO())) as bar:
        trainer.fit(batches, hooks, bar)


def trainer_of(model: Any, workers: int = 1, objective: Any = OBJECTIVE, **settings: Any) -> Trainer:
    return Trainer(model, objective, TrainSettings(**({"steps": 4} | settings)), Charge("test"), workers)


def gradients(trainer: Trainer, batch: Batch) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    metrics = trainer._gradients(batch)
    return {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}, metrics


def weights(model: Any) -> list[torch.Tensor]:
    """Return copies of all weights and router biases."""
    return [tensor.clone() for tensor in model.state_dict().values()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("workers", "micro_tokens"), [(2, None), (3, None), (1, 16), (1, 40), (2, 16)])
def test_however_a_batch_is_parted_its_gradients_are_the_same(make_model, workers, micro_tokens):
    model, batch = make_model(), STREAM.batch(0)
    plain = trainer_of(model)
    parted = trainer_of(model, workers, micro_tokens=micro_tokens)
    whole, metrics = gradients(plain, batch)
    sums, of_parts = gradients(parted, batch)
    assert len(batch.pieces(workers, micro_tokens)) >= 2
    assert whole.keys() == sums.keys()
    for name, gradient in whole.items():
        assert torch.allclose(sums[name], gradient, atol=1e-6), name
    assert of_parts == pytest.approx(metrics, rel=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(plain._counts, parted._counts, strict=True))
    assert (parted.meter.tokens, parted.meter.flops) == (plain.meter.tokens, plain.meter.flops)


def test_unequal_parts_weigh_by_what_they_have_to_learn(make_model):
    model = make_model()
    batch = packed_examples(
        [([0] + [5 + n] * n + [1], [False] * (n // 2 + 1) + [True] * (n - n // 2 + 1)) for n in (2, 9, 4, 12, 21)]
    )
    whole, metrics = gradients(trainer_of(model, objective=NextToken(0.0, 0.0)), batch)
    sums, of_parts = gradients(trainer_of(model, 2, NextToken(0.0, 0.0), micro_tokens=8), batch)
    assert len({share for _, share in batch.pieces(2, 8)}) > 2
    assert of_parts == pytest.approx(metrics, rel=1e-5)
    assert all(torch.allclose(sums[name], gradient, atol=1e-6) for name, gradient in whole.items())


def test_two_workers_give_the_same_bits_each_time(make_model):
    model, batch = make_model(), STREAM.batch(1)
    (first, one), (second, other) = (gradients(trainer_of(model, 2), batch) for _ in range(2))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert one == other and "mtp_loss" in one


def test_work_is_charged_by_formula(make_model):
    trainer = trainer_of(make_model())
    trainer.step(STREAM.batch(0))
    tokens, pairs = 6 * 16, 6 * 16 * 17 // 2
    expected = training_flops(trainer.model.config, tokens=tokens, pairs=pairs, head_tokens=tokens, mtp=True)
    meter = trainer.meter
    assert (meter.tokens, meter.flops) == (tokens, expected)
    # No gradient goes into the tokens: each product of the forward pass has two behind it.
    assert meter.backward_flops == 2 * meter.forward_flops and meter.recompute_flops == 0
    assert sum(meter.flops_by_part.values()) == expected and set(meter.flops_by_part) == {
        "attention",
        "dense",
        "experts",
        "head",
        "mtp",
    }


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_leaves_all_as_it_was(make_model, broken):
    def objective(model: Any, batch: Batch) -> Any:
        loss = OBJECTIVE(model, batch)
        object.__setattr__(loss, "total", loss.total * broken)
        return loss

    trainer, diary = trainer_of(make_model(), 2, objective), Diary()
    before = weights(trainer.model)
    with pytest.raises(RunError, match=r"step 1: the loss is .* no weight was changed; start afresh \(--fresh\)"):
        fit(trainer, diary.hooks())
    assert same(before, weights(trainer.model)) and trainer.optimiser.steps == 0
    assert diary.saved == [] and diary.logged == []


def test_a_time_budget_becomes_steps_by_trying(make_model, monkeypatch):
    """Each batch takes two seconds by this clock: three are tried, and the rest is spent at 1.1 times that."""
    clock = [0.0]

    class Time:
        monotonic = staticmethod(lambda: clock[0])

    monkeypatch.setattr(module, "time", Time)

    def batch(step: int) -> Batch:
        clock[0] += 2.0
        return STREAM.batch(step)

    trainer = trainer_of(make_model(), steps=None, minutes=15 / 60)
    before = weights(trainer.model)
    assert trainer._steps_in_budget(batch) == int((15 - 6) / 2.2) == 4
    assert same(before, weights(trainer.model)) and trainer.optimiser.steps == 0
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert trainer_of(make_model(), steps=None, minutes=0.01)._steps_in_budget(batch) == 1, "at least one"
    diary = Diary()
    fit(trainer, diary.hooks(), batch)
    assert (trainer.steps, trainer.done, diary.steps_saved) == (4, 4, [4])


def test_steps_are_logged_and_saved_in_their_turn(make_model):
    trainer, diary = trainer_of(make_model(), steps=5, checkpoint_every=2, validate_every=2), Diary()
    seen: list[int] = []

    def validate() -> dict[str, float]:
        seen.append(trainer.done)
        return {"validation_loss": 1.0 / trainer.done}

    fit(trainer, diary.hooks(validate=validate))
    assert seen == [2, 4, 5], "every second step, and the last"
    assert diary.steps_saved == [2, 4, 5]
    assert [state["done"] for _, state in diary.saved] == [2, 4, 5]
    assert [step for step, _ in diary.logged] == [1, 2, 3, 4, 5]
    for step, metrics in diary.logged:
        assert {"loss", "mtp_loss", "gradient_norm", "lr_factor", "load_factor", "tokens_per_s"} <= metrics.keys()
        assert metrics.get("validation_loss") == (1.0 / step if step in seen else None)
    assert not trainer.model.training


def test_a_batch_seen_again_and_again_is_learnt(make_model):
    trainer, diary = trainer_of(make_model(), steps=12), Diary()
    fit(trainer, diary.hooks(), lambda step: STREAM.batch(0))
    losses = [metrics["loss"] for _, metrics in diary.logged]
    assert losses[-1] < 0.75 * losses[0]


def test_long_stages_log_about_300_rows():
    stage = trainer_of(torch.nn.Linear(1, 1), steps=700, validate_every=10_000, checkpoint_every=10_000)
    stage.model.device = torch.device("cpu")
    diary = Diary()
    fit(stage, diary.hooks(), lambda step: GroupBatch([]))
    assert [step for step, _ in diary.logged] == list(range(2, 701, 2))


def test_enough_ends_a_stage_early(make_model):
    trainer, diary = trainer_of(make_model(), steps=6, validate_every=2), Diary()
    fit(trainer, diary.hooks(validate=lambda: {"right": 0.1 * trainer.done}, enough=lambda found: found["right"] > 0.3))
    assert (trainer.done, trainer.ended, diary.steps_saved) == (4, True, [4])
    again = trainer_of(trainer.model, steps=6)
    again.load_state_dict(diary.saved[-1][1])
    fit(again, Diary().hooks(validate=lambda: {}, enough=lambda _: False))
    assert again.done == 4, "what has ended stays ended"


def test_nothing_to_learn_from_counts_as_a_step(make_model):
    trainer, diary = trainer_of(make_model(), steps=3), Diary()
    before = weights(trainer.model)
    fit(trainer, diary.hooks(), lambda step: GroupBatch([], {"reward": 0.25}))
    assert all(metrics["reward"] == 0.25 for _, metrics in diary.logged)
    assert trainer.done == 3 and trainer.optimiser.steps == 0 and same(before, weights(trainer.model))
    assert [step for step, _ in diary.logged] == [1, 2, 3]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_granted_between_two_steps(make_model, capsys, number):
    trainer, diary = trainer_of(make_model(), steps=5, checkpoint_every=100), Diary()
    before = signal.getsignal(number)

    def batch(step: int) -> Batch:
        if step == 2:
            signal.raise_signal(number)
        return STREAM.batch(step)

    with pytest.raises(KeyboardInterrupt):
        fit(trainer, diary.hooks(), batch)
    assert diary.steps_saved == [3] and diary.saved[0][1]["done"] == 3 and trainer.optimiser.steps == 3
    assert signal.getsignal(number) is before
    assert "the state is saved first" in capsys.readouterr().err


def test_the_second_interrupt_is_obeyed_at_once(make_model):
    trainer, diary = trainer_of(make_model(), steps=5), Diary()

    def batch(step: int) -> Batch:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        fit(trainer, diary.hooks(), batch)
    assert diary.saved == [] and trainer.done == 0


def test_an_interrupt_while_logging_does_not_lose_the_step(make_model):
    trainer, diary = trainer_of(make_model(), steps=5, checkpoint_every=100), Diary()

    def log(step: int, metrics: dict[str, float]) -> None:
        diary.log(step, metrics)
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(trainer, diary.hooks(log=log))
    assert diary.steps_saved == [2] and [step for step, _ in diary.logged] == [1, 2]


def test_every_router_that_ran_is_balanced(make_model):
    """The MTP layer's bias moves in the steps in which the layer learns; the load shown is the main layers'."""
    model = make_model()
    trainer = trainer_of(model, balance_rate=0.01)
    gates = [layer.gate for layer in model.moe_layers] + [model.mtp_layer.mlp.gate]
    for mtp in (False, True):
        before = [gate.e_score_correction_bias.clone() for gate in gates]
        batch = STREAM.batch(0)
        object.__setattr__(batch, "mtp", mtp)
        metrics = trainer.step(batch)
        moved = [not torch.equal(gate.e_score_correction_bias, b) for gate, b in zip(gates, before, strict=True)]
        assert moved == [True, True, mtp]
        main = trainer._counts[:2]
        assert len(trainer._counts) == 2 + mtp
        assert metrics["load_factor"] == max(float(c.max() / c.float().mean()) for c in main)


def test_of_parts_the_largest_gap_and_else_the_mean_is_shown():
    joined = module._joined([{"loss": 1.0, "logprob_gap": 0.5}, {"loss": 3.0, "logprob_gap": 0.25}], [0.75, 0.25])
    assert joined == {"loss": 1.5, "logprob_gap": 0.5}


def test_a_spike_is_skipped_and_logged(make_model):
    """Step 30's loss is a thousand times what it should be: its weights stay those of step 29."""
    calls = [0]

    def objective(model: Any, batch: Batch) -> Any:
        calls[0] += 1
        loss = NextToken(0.0, 0.0)(model, batch)
        if calls[0] == 30:
            object.__setattr__(loss, "total", loss.total * 1000)
        return loss

    trainer, diary = trainer_of(make_model(), objective=objective, steps=31, skip_spikes=5.0), Diary()
    seen: list[list[torch.Tensor]] = []

    def batches(step: int) -> Batch:
        seen.append(weights(trainer.model))
        return STREAM.batch(step)

    fit(trainer, diary.hooks(), batches)
    assert [step for step, metrics in diary.logged if "skipped" in metrics] == [30]
    assert same(seen[29], seen[30]) and not same(seen[28], seen[29])
    assert trainer.optimiser.steps == 30 and diary.saved[-1][1]["spikes"] == trainer.spikes.state_dict()


@pytest.mark.parametrize("balance_loss", [0.0, 1e-3])
def test_blocks_computed_anew_give_the_same_bits(make_model, balance_loss):
    model, batch = make_model(), STREAM.batch(0)
    kept, metrics = gradients(trainer_of(model, objective=NextToken(0.3, balance_loss)), batch)
    counts = None
    anew = trainer_of(model, objective=NextToken(0.3, balance_loss), recompute=True)
    assert model.recompute
    again, same_metrics = gradients(anew, batch)
    counts = anew._counts
    assert metrics == same_metrics and kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    assert len(counts) == len(model.moe_layers) + 1, "no choice is noted twice"


def test_what_is_computed_anew_is_charged_as_that(make_model):
    plain, anew = trainer_of(make_model()), trainer_of(make_model(), recompute=True, most_logits=999)
    for trainer in (plain, anew):
        trainer.step(STREAM.batch(0))
    extra = anew.meter.flops - plain.meter.flops
    read = {"tokens": 6 * 16, "pairs": 6 * 16 * 17 // 2}
    assert extra == sum(forward_parts(anew.model.config, **read).values())


def test_logits_a_few_at_a_time_give_the_same_gradient(make_model):
    model, batch = make_model(), STREAM.batch(0)
    whole, metrics = gradients(trainer_of(model), batch)
    few, of_few = gradients(trainer_of(model, objective=NextToken(0.3, 1e-3, most_logits=7 * 320)), batch)
    assert of_few == pytest.approx(metrics, rel=1e-5)
    assert all(torch.allclose(few[name], whole[name], atol=1e-6) for name in whole)
