"""DPO as a stage: pairs that no step has seen are told apart, and what the first model thought is computed once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from leanseek import stages
from leanseek.checkpoint.directory import load_model, save_model
from leanseek.errors import ConfigError, DataError
from leanseek.run import Run
from leanseek.settings import load_recipe
from leanseek.train import preference


@pytest.fixture
def make_run_on_pairs(tmp_path: Path, monkeypatch, make_model, tiny_tokenizer):
    """Return a function that makes a run which learns to say a word twice and not once, of pairs."""
    monkeypatch.setattr(stages, "share_out", lambda threads, device: threads or 1)

    def make(folder: str = "run", **changes: object) -> Run:
        given, data = tmp_path / "given", tmp_path / "pairs.jsonl"
        if not given.exists():
            save_model(make_model(), given, tiny_tokenizer)
        rows = [{"prompt": f"{n}", "chosen": f"left {n}", "rejected": f"right {n}"} for n in range(10, 34)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {
            "model": str(given / "config.json"),
            "grpo.start": str(given),
            "stages": {"dpo": {}},
            "dpo.data": str(data),
            "dpo.held_out": 0.25,
            "dpo.batch_sequences": 6,
            "dpo.passes": 3,
            "dpo.validate_every": 3,
            "dpo.checkpoint_every": 2,
            "dpo.optimiser.lr": 5e-3,
            "threads": 1,
        }
        return Run.create(tmp_path / folder, load_recipe("tuner", settings | changes))

    return make


@pytest.mark.parametrize("rank", [0, 4])
def test_pairs_that_no_step_has_seen_are_told_apart(make_run_on_pairs, rank):
    run = make_run_on_pairs(**{"dpo.lora_rank": rank})
    stages.make(run)
    figures = run.summary["dpo"]
    assert (figures["steps"], figures["pairs"], figures["held_out"]) == (9, 18, 6)
    assert figures["validation_preferred"] == 1.0 and figures["validation_margin"] > 0.1
    rows = [row for row in stages.RunLog(run.metrics_path).read("dpo") if "loss" in row]
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-3), "at first nothing is preferred: the loss is log 2"
    assert abs(rows[0]["margin"]) < 1e-3 and rows[-1]["margin"] > rows[0]["margin"]
    card = run.card_path.read_text(encoding="utf-8")
    assert "pairs.jsonl" in card and figures["data"]["sha256"] in card


def test_a_stopped_one_goes_on_bit_for_bit_and_asks_the_first_model_once(make_run_on_pairs, monkeypatch):
    whole, stopped = make_run_on_pairs(), make_run_on_pairs("stopped")
    stages.make(whole, "dpo")
    log = stages.RunLog.log

    def fall(self, stage, step, **values):
        if step == 5:
            raise KeyboardInterrupt
        log(self, stage, step, **values)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages.RunLog, "log", fall)
        stages.make(stopped, "dpo")
    kept = stopped.folder / "reference" / "dpo.json"
    known = json.loads(kept.read_text())
    with monkeypatch.context() as patch:
        patch.setattr(preference, "_logprobs", None)  # a second call would fail
        stages.make(stopped, "dpo")
    first, second = (load_model(run.latest("dpo")).state_dict() for run in (whole, stopped))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    # Where the file is lost, it is the first model again that is asked, not the one that has learnt.
    kept.unlink()
    summary = stopped.summary
    summary["dpo"]["done"] = False
    (stopped.folder / "summary.json").write_text(json.dumps(summary))
    stages.make(stopped, "dpo")
    assert json.loads(kept.read_text()) == known


def test_what_cannot_be_is_told_before_anything_is_made(make_run_on_pairs):
    run = make_run_on_pairs()
    Path(run.recipe.dpo.data).write_text('{"prompt": "x", "chosen": "a", "rejected": "a"}\n')
    with pytest.raises(DataError, match=r"pairs\.jsonl:1: chosen and rejected are the same"):
        stages.dry_run(run.recipe)
    with pytest.raises(ConfigError, match=r"nothing to learn from: give a \.jsonl file of pairs"):
        stages.dry_run(load_recipe("tuner", {"stages": {"dpo": {}}, "grpo.start": "x"}))
