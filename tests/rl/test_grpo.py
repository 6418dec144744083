"""GRPO as a stage: its figures, that going on is as if never stopped, and the KL's reference."""

from __future__ import annotations

import itertools
import signal
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

import leanseek.checkpoint.resume as resume
import leanseek.rl.grpo as module
from leanseek.checkpoint.directory import load_model, save_model
from leanseek.checkpoint.resume import load_state
from leanseek.cost.ledger import Charge
from leanseek.envs.environment import Problem
from leanseek.errors import RunError
from leanseek.kernels.likelihood import log_likelihood
from leanseek.log import RunLog
from leanseek.model.experts import Routing
from leanseek.model.transformer import Transformer
from leanseek.rl.grpo import grpo
from leanseek.rl.rollouts import Rollouts
from leanseek.rl.stream import Stream
from leanseek.run import Run
from leanseek.train.balance import expert_counts
from leanseek.train.objectives.grpo import Group, GroupBatch, Grpo
from leanseek.train.objectives.loss import Loss
from leanseek.train.stage import Stage

FIGURES = {"reward", "correct", "correct_even", "format", "length", "informative_groups", "samples_per_s", "sample_s"}
TRAINED = {"loss", "logprob_gap", "routing_agreement", "clip_fraction", "entropy", "gradient_norm", "lr_factor"}


@pytest.fixture
def stage(make_run, make_model, tiny_tokenizer):
    """Return a function that gives the GRPO stage of a run with an SFT model."""

    def make(folder: str = "run", workers: int = 1, **changes: object) -> Stage:
        run = make_run(folder, **changes)
        save_model(make_model(), run.checkpoint("sft", 1), tiny_tokenizer)
        log = RunLog(run.metrics_path)
        return Stage(run, "grpo", tiny_tokenizer, log, Charge("test"), workers)

    return make


def saved(run: Run) -> dict[str, Any]:
    """Return weights, router biases and training state of a run's newest checkpoint."""
    path = run.latest("grpo")
    return {**load_model(path).state_dict(), **dict(resume._flatten(load_state(path)))}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        for key, value in one.items()
    )


def learnt(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows without what depends on the clock."""
    timed = ("time_s", "tokens_per_s", "sample_s", "samples_per_s")
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


class Interrupting(RunLog):
    """A log in which Ctrl-C comes with step 1, between two checkpoints."""

    def log(self, stage: str, step: int, **values: Any) -> None:
        super().log(stage, step, **values)
        if step == 1:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("workers", [1, 2])
def test_going_on_is_bit_by_bit_as_if_never_stopped(stage, even, workers):
    whole, parts = stage("whole", workers), stage("parts", workers)
    figures = grpo(whole, [even], lambda model: {"heldout_even": 0.5})
    with pytest.raises(KeyboardInterrupt):
        grpo(replace(parts, log=Interrupting(parts.run.metrics_path)), [even], lambda model: {"heldout_even": 0.5})
    assert parts.run.latest("grpo").name == "grpo-1"
    again = grpo(parts, [even], lambda model: {"heldout_even": 0.5})
    assert same(saved(whole.run), saved(parts.run)) and saved(whole.run)["done"] == 4
    assert learnt(whole.log.read()) == learnt(parts.log.read())
    assert figures == again


def test_figures_and_log(stage, even):
    chosen = stage()
    before = load_model(chosen.run.latest("sft")).state_dict()
    figures = grpo(chosen, [even], lambda model: {"heldout_even": 0.5})
    rows = chosen.log.read("grpo")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "heldout_even" in row] == [2, 4]
    assert all(row.keys() >= FIGURES | TRAINED for row in rows)
    assert figures == {
        "steps": 4,
        "samples": 4 * 16,
        "logprob_gap": max(row["logprob_gap"] for row in rows),
        "routing_agreement": 1.0,
    }
    assert figures["logprob_gap"] < 1e-5, "the engine and the trainer share their weights"
    assert sum(not torch.equal(value, before[key]) for key, value in saved(chosen.run).items() if key in before) > 20
    assert chosen.meter.tokens > sum(row["length"] * 16 for row in rows), "sampling and learning are charged"


def test_without_anything_to_learn_the_weights_stay(stage, even, monkeypatch):
    monkeypatch.setattr(type(even), "check", lambda self, problem, answer: True)
    chosen = stage()
    figures = grpo(chosen, [even], lambda model: {})
    assert figures == {"steps": 4, "samples": 64}
    assert [row["reward"] for row in chosen.log.read("grpo")] == [1.0] * 4, "told all the same"
    before = load_model(chosen.run.latest("sft")).state_dict()
    assert all(torch.equal(value, before[key]) for key, value in saved(chosen.run).items() if key in before)


def test_the_kl_is_to_the_sft_model_even_after_going_on(stage, even, monkeypatch):
    loaded: list[str] = []

    def noted(folder: Any, **values: Any) -> Any:
        loaded.append(folder.name)
        return load_model(folder, **values)

    monkeypatch.setattr(module, "load_model", noted)
    chosen = stage(grpo__kl_weight=0.1, grpo__steps=2)
    grpo(chosen, [even], lambda model: {})
    first, second = (row["kl"] for row in chosen.log.read("grpo"))
    assert first == pytest.approx(0.0, abs=1e-6) and second > 1e-6, "it moves away from where it began"
    grpo(chosen, [even], lambda model: {})
    assert loaded == ["sft-1", "sft-1"]


class FirstForm(Grpo):
    """The objective as it was before it had other forms, operation by operation."""

    def __call__(self, model: Transformer, batch: GroupBatch) -> Loss:
        packed = batch.packed
        routing = Routing(replay_TNK=packed.replay_TNK, compare=True)
        hidden_TD = model(packed.tokens_T, batch.segments, routing=routing)
        logits_MW = model.logits(hidden_TD.index_select(0, packed.rows_M)).float()
        logprobs_M = log_likelihood(logits_MW, packed.targets_M)
        ratio_M = torch.exp(logprobs_M - packed.old_M)
        clipped_M = ratio_M.clamp(1 - self.clip_low, 1 + self.clip_high)
        total = -torch.minimum(ratio_M * packed.advantages_M, clipped_M * packed.advantages_M).mean()
        counts = expert_counts(routing, model.config.n_routed_experts)
        segments = batch.segments
        return Loss(
            total, {"loss": float(total.detach())}, segments.tokens, segments.pairs, batch.reply_tokens, counts=counts
        )


class FirstRollouts(Rollouts):
    """A step's batch as it was made before groups could be drawn again."""

    def batch(self, step: int) -> GroupBatch:
        attempts = self._attempts(step)
        each = self.settings.samples_per_prompt
        groups = []
        for at in range(0, len(attempts), each):
            some = attempts[at : at + each]
            rewards = [float(a.correct) + self.settings.format_reward * float(a.formed) for a in some]
            mean = sum(rewards) / len(rewards)
            variance = sum((reward - mean) ** 2 for reward in rewards) / len(rewards)
            if variance > 1e-12:
                advantages = [(reward - mean) / variance**0.5 for reward in rewards]
                ids, logprobs = [a.output.token_ids for a in some], [a.output.logprobs for a in some]
                experts = [a.output.experts for a in some]
                groups.append(Group(some[0].prompt_ids, ids, logprobs, advantages, experts))
        return GroupBatch(groups)

    def problems(self, step: int) -> list[Problem]:
        seed = 1_000_000 + self.seed * 1_000_003 + step
        sources = [e.problems("train", seed, self.levels.get(e.name)) for e in self.environments]
        for source in sources:
            for _ in range(step % 7):
                next(source)
        return [next(source) for source in itertools.islice(itertools.cycle(sources), self.settings.prompts_per_step)]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_without_new_settings_is_bit_by_bit_what_it_was_before_there_were_any(stage, even, monkeypatch, workers):
    new = stage("new", workers)
    grpo(new, [even], lambda model: {})
    monkeypatch.setattr(module, "Grpo", lambda low, high, *_, **__: FirstForm(low, high))
    monkeypatch.setattr(module, "Rollouts", FirstRollouts)
    old = stage("old", workers)
    grpo(old, [even], lambda model: {})
    assert same(saved(new.run), saved(old.run)) and len(saved(new.run)) > 50
    assert [row["loss"] for row in new.log.read()] == [row["loss"] for row in old.log.read()]


EVERYTHING = {
    "grpo__epochs": 2,
    "grpo__minibatches": 2,
    "grpo__refill": 1,
    "grpo__off_policy": 0.1,
    "grpo__overlong_tokens": 4,
    "grpo__sort_by_length": True,
    "grpo__most_logits": 4000,
    "grpo__kl_weight": 0.01,
}


@pytest.mark.parametrize("objective", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_every_objective_trains_with_every_setting_and_goes_on_bit_by_bit(stage, even, objective):
    changes = {**EVERYTHING, "grpo__objective": objective, "grpo__lora_rank": 2 if objective == "gspo" else 0}
    whole, parts = stage("whole", 2, **changes), stage("parts", 2, **changes)
    figures = grpo(whole, [even], lambda model: {})
    with pytest.raises(KeyboardInterrupt):
        grpo(replace(parts, log=Interrupting(parts.run.metrics_path)), [even], lambda model: {})
    assert grpo(parts, [even], lambda model: {}) == figures and "samples" not in figures
    assert same(saved(whole.run), saved(parts.run)) and learnt(whole.log.read()) == learnt(parts.log.read())
    assert figures["logprob_gap"] < 1e-5 and figures["routing_agreement"] == 1.0, "of each step's first update"
    before = load_model(whole.run.latest("sft")).state_dict()
    changed = [key for key, value in saved(whole.run).items() if key in before and not torch.equal(value, before[key])]
    assert len(changed) > 10
    assert any(".mlp.experts." in key for key in changed) == (objective != "gspo")


@pytest.mark.parametrize("objective", ["dapo", "gspo"])
def test_rollouts_may_go_on_while_the_trainer_learns(stage, even, monkeypatch, objective):
    streams: list[Stream] = []

    class Watched(Stream):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            streams.append(self)

    def evaluate(model: Transformer) -> dict[str, float]:
        """Wait until all is drawn that the newest copy may draw: what the clock decides is then decided."""
        (stream,) = streams
        with stream._condition:
            for _ in range(100):
                behind = stream._next is None or stream._next.step > stream._newest.version + 2
                if behind and not any(slot.open for slot in stream._slots):
                    break
                stream._condition.wait(0.5)
        return {"heldout_even": 0.5}

    monkeypatch.setattr(module, "Stream", Watched)
    chosen = stage(grpo__staleness=2, grpo__steps=6, grpo__objective=objective, grpo__drafts=1, grpo__validate_every=1)
    figures = grpo(chosen, [even], evaluate)
    rows = chosen.log.read("grpo")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6] and figures["samples"] == 6 * 16
    assert [row["staleness"] for row in rows] == [row["staleness_most"] for row in rows] == [0, 1, 2, 2, 2, 2]
    assert figures["logprob_gap"] < 1e-5 and figures["routing_agreement"] == 1.0, "on the weights that sampled"
    assert rows[0]["stale_gap"] < 1e-5 and max(row["stale_gap"] for row in rows) > 1e-4, "the model has moved since"
    assert all("off_policy_fraction" in row for row in rows)
    assert not [thread for thread in threading.enumerate() if thread.name in ("rollouts", "group")]


def test_a_stale_run_goes_on_where_it_was_stopped(stage, even):
    chosen = stage(grpo__staleness=1)
    with pytest.raises(KeyboardInterrupt):
        grpo(replace(chosen, log=Interrupting(chosen.run.metrics_path)), [even], lambda model: {})
    assert chosen.run.latest("grpo").name == "grpo-1"
    assert grpo(chosen, [even], lambda model: {})["steps"] == 4
    assert [row["step"] for row in chosen.log.read("grpo")] == [1, 2, 3, 4]


def test_a_trainer_that_does_not_compute_what_was_sampled_ends_the_run(stage, even, monkeypatch):
    class Off(Grpo):
        def _logprobs(self, *given: Any) -> torch.Tensor:
            return super()._logprobs(*given) - 0.01

    monkeypatch.setattr(module, "Grpo", Off)
    with pytest.raises(RunError, match=r"logprob_gap is 0\.01.*the trainer does not compute what the engine sampled"):
        grpo(stage(), [even], lambda model: {})


def test_low_rank_updates_are_saved_merged_and_sampled_from(stage, even):
    chosen = stage(grpo__lora_rank=2, grpo__lora_targets='["o_proj"]', grpo__balance_rate=0.0)
    figures = grpo(chosen, [even], lambda model: {})
    assert figures["logprob_gap"] < 1e-5, "the engine samples from the adapted weights"
    before, after = (load_model(chosen.run.latest(name)) for name in ("sft", "grpo"))
    for name, parameter in after.named_parameters():
        update = (parameter - before.get_parameter(name)).detach()
        adapted = name.endswith("o_proj.weight") and ".3." not in name
        assert int(torch.linalg.matrix_rank(update, rtol=1e-3)) == 2 if adapted else not update.any(), name


def test_a_run_may_start_from_a_folder_and_tells_what_it_could_do_before(
    make_run, make_model, tiny_tokenizer, even, tmp_path
):
    save_model(make_model(seed=4), tmp_path / "given", tiny_tokenizer)
    run = make_run(grpo__start=str(tmp_path / "given"), grpo__kl_weight=0.1)
    chosen = Stage(run, "grpo", tiny_tokenizer, RunLog(run.metrics_path), Charge("test"))
    shares = iter([0.25, 0.3, 0.5, 0.5])
    figures = grpo(chosen, [even], lambda model: {"heldout_even": next(shares)})
    assert run.summary["grpo"]["before"] == {"heldout_even": 0.25} and figures["heldout_even"] == 0.5
    row = chosen.log.read("grpo")[0]
    assert row["logprob_gap"] < 1e-5 and row["kl"] == pytest.approx(0.0, abs=1e-6), "and the KL is to it"
    again = grpo(chosen, [even], lambda model: {"heldout_even": 0.5})
    assert again == figures and run.summary["grpo"]["before"] == {"heldout_even": 0.25}
