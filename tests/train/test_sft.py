"""SFT as a stage: its figures, when it has had enough, and what it learns."""

from __future__ import annotations

import pytest

from leanseek.checkpoint.directory import save_model
from leanseek.cost.ledger import Charge
from leanseek.envs.environment import load_environment
from leanseek.log import RunLog
from leanseek.train.sft import sft
from leanseek.train.stage import Stage

TASKS = [load_environment(name) for name in ("running_total", "largest")]


@pytest.fixture
def stage(make_run, tiny_model, tiny_tokenizer):
    """Return a function that gives the SFT stage of a run with a pretrained model."""

    def make(**changes: object) -> Stage:
        run = make_run(**changes)
        save_model(tiny_model, run.checkpoint("pretrain", 1), tiny_tokenizer)
        return Stage(run, "sft", tiny_tokenizer, RunLog(run.metrics_path), Charge("test"))

    return make


def test_figures_and_log(stage):
    chosen = stage()
    figures = sft(chosen, TASKS, lambda model: {"heldout_largest": 0.5, "heldout_running_total": 0.0})
    assert figures == {
        "steps": 6,
        "traces": 40,
        "passes": 6 / (40 // 6),
        "heldout_largest": 0.5,
        "heldout_running_total": 0.0,
    }
    rows = chosen.log.read("sft")
    assert [row["step"] for row in rows if "heldout_largest" in row] == [3, 6]
    assert all("mtp_loss" in row and row["loss"] > 0 for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert chosen.meter.tokens > 0


@pytest.mark.parametrize(("enough", "steps"), [(0.4, 3), (0.5, 6), (None, 6)])
def test_the_mean_over_tasks_ends_the_stage(stage, enough, steps):
    chosen = stage(**({} if enough is None else {"sft__enough": enough}), sft__validate_every=3)
    figures = sft(chosen, TASKS, lambda model: {"heldout_largest": 0.8, "heldout_running_total": 0.1})
    assert figures["steps"] == steps
    assert chosen.run.latest("sft").name == f"sft-{steps}"


def test_the_model_that_is_looked_at_is_the_one_that_learns(stage, tiny_model):
    weights = []
    sft(stage(), TASKS, lambda model: weights.append(float(model.lm_head.weight.detach().sum())) or {"x": 0.0})
    assert len(set(weights)) == 2 and float(tiny_model.lm_head.weight.detach().sum()) not in weights
