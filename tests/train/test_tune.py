"""Fine-tuning on one's own conversations: every family, in full and by low-rank updates, resumed bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from leanseek import stages
from leanseek.checkpoint.directory import load_model, save_model
from leanseek.errors import DataError, RunError
from leanseek.log import RunLog
from leanseek.run import Run
from leanseek.settings import load_recipe

FAMILIES = {
    "v3": {"num_nextn_predict_layers": 1},
    "v2": {
        "model_type": "deepseek_v2",
        "n_group": 2,
        "topk_group": 1,
        "topk_method": "group_limited_greedy",
        "num_nextn_predict_layers": 0,
    },
    "qwen": {
        "model_type": "qwen3",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_nextn_predict_layers": 0,
    },
}
SAID = ["up", "down", "left", "right"]


def conversation(n: int) -> dict[str, object]:
    """Return one of two turns whose replies follow from what is asked."""
    first, second = SAID[n % 4], SAID[(n + 1) % 4]
    told = [("user", first), ("assistant", first * 2), ("user", second), ("assistant", second * 2)]
    return {"messages": [{"role": role, "content": content} for role, content in told]}


@pytest.fixture
def make_tuned(tmp_path: Path, monkeypatch, make_model, tiny_tokenizer):
    """Return a function that makes a run which learns from a file of conversations."""
    monkeypatch.setattr(stages, "share_out", lambda threads, device: threads or 1)

    def make(family: str = "v3", *, folder: str = "run", rows: int = 24, **changes: object) -> Run:
        given, data = tmp_path / family, tmp_path / "data.jsonl"
        if not given.exists():
            save_model(make_model(**FAMILIES[family]), given, tiny_tokenizer)
        if not data.exists():
            data.write_text("".join(json.dumps(conversation(n)) + "\n" for n in range(rows)))
        settings = {
            "model": str(given / "config.json"),
            "grpo.start": str(given),
            "sft.data": str(data),
            "sft.held_out": 0.25,
            "sft.batch_sequences": 6,
            "sft.validate_every": 3,
            "sft.optimiser.lr": 5e-3,
            "threads": 1,
        }
        return Run.create(tmp_path / folder, load_recipe("tuner", settings | changes))

    return make


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_kept_aside_is_foretold_better(make_tuned, family, rank):
    run = make_tuned(family, **{"sft.lora_rank": rank, "sft.passes": 4})
    stages.make(run)
    figures = run.summary["sft"]
    assert figures["steps"] == 12 and figures["passes"] == 4.0, "18 conversations, 6 at a time, 4 times"
    assert (figures["conversations"], figures["held_out"]) == (18, 6)
    assert figures["validation_loss"] < 0.8 * figures["before"]["validation_loss"]
    assert not any(run.stage_begun(name) for name in ("tokenizer", "pretrain", "grpo"))
    before, after = load_model(Path(run.recipe.grpo.start)), load_model(run.latest("sft"))
    changed = {n for n, p in before.named_parameters() if not torch.equal(p, after.get_parameter(n))}
    assert changed and ("model.embed_tokens.weight" in changed) == (rank == 0)
    card = run.card_path.read_text(encoding="utf-8")
    assert figures["data"]["sha256"] in card and "trained further by SFT" in card and "made from nothing" not in card
    assert run.report_path.is_file()


@pytest.mark.parametrize("rank", [0, 4])
def test_a_stopped_one_goes_on_bit_for_bit(make_tuned, monkeypatch, rank):
    whole = make_tuned(**{"sft.lora_rank": rank, "sft.checkpoint_every": 2})
    stages.make(whole, "sft")
    stopped = make_tuned(folder="stopped", **{"sft.lora_rank": rank, "sft.checkpoint_every": 2})
    log = RunLog.log

    def fall(self, stage, step, **values):
        if step == 5:
            raise KeyboardInterrupt
        log(self, stage, step, **values)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunLog, "log", fall)
        stages.make(stopped, "sft")
    assert stopped.latest("sft").name == "sft-4"
    stages.make(stopped, "sft")
    first, second = (load_model(run.latest("sft")).state_dict() for run in (whole, stopped))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_file_that_has_changed_is_not_gone_on_with(make_tuned):
    run = make_tuned(**{"sft.steps": 1})
    stages.make(run, "sft")
    summary = run.summary
    summary["sft"]["done"] = False
    (run.folder / "summary.json").write_text(json.dumps(summary))
    path = Path(run.recipe.sft.data)
    path.write_text(path.read_text() + json.dumps(conversation(3)) + "\n")
    with pytest.raises(RunError, match="has changed since sft began"):
        stages.make(run, "sft")


def test_a_bad_line_is_told_before_anything_is_made(make_tuned, tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps(conversation(1)) + '\n{"messages": [{"role": "bot"}]}\n')
    run = make_tuned()
    for act in (lambda: stages.dry_run(run.recipe), lambda: stages.make(run)):
        with pytest.raises(DataError, match=r"data\.jsonl:2: messages\[0\]\.role = 'bot'"):
            act()
    assert not run.stage_begun("sft")
