"""GRPO as a stage: its figures, that going on is as if never stopped, and the KL's reference."""

from __future__ import annotations

import signal
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import leanseek.checkpoint.resume as resume
import leanseek.rl.grpo as module
from leanseek.checkpoint.directory import load_model, save_model
from leanseek.checkpoint.resume import load_state
from leanseek.log import RunLog
from leanseek.rl.grpo import grpo
from leanseek.run import Run
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
        return Stage(run, "grpo", tiny_tokenizer, log, SimpleNamespace(tokens=0, flops=0.0), workers)

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
