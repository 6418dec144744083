"""The whole line on a tiny recipe: what it leaves, that it is made once, and that it goes on after a stop."""

from __future__ import annotations

import errno
import json
import math
import re
import signal
import time
from pathlib import Path

import pytest
import torch

import leanseek
import leanseek.checkpoint.resume as resume
from leanseek import stages
from leanseek.checkpoint.directory import empty_model, load_model
from leanseek.cost.fields import missing_fields
from leanseek.cost.rates import save_rates
from leanseek.data.preparation import Preparation, Wishes
from leanseek.errors import CheckpointError, ConfigError, DataError, RunError
from leanseek.log import RunLog
from leanseek.model.config import load_preset
from leanseek.run import STAGES, Run
from leanseek.sections.training import OptimiserSettings
from leanseek.settings import Recipe
from leanseek.tokens.tokenizer import Tokenizer
from leanseek.train.optimisers import STATE, Optimiser
from tests.cost.measured import RATES

COSTS = {"seconds", "tokens", "flops", "joules", "meter", "usd", "peak_memory_bytes"}
SUMMED = ("seconds", "tokens", "flops", "joules", "usd")
TASKS = {"running_total", "largest"}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def quiet(monkeypatch):
    """Leave the allocator and the number of threads of the test process as they are."""
    monkeypatch.setattr(stages, "share_out", lambda threads, device: threads or 1)


FAMILIES = {
    "v2": {"model_type": "deepseek_v2", "n_group": 2, "topk_group": 1, "topk_method": "group_limited_greedy"},
    "v3.2": {"model_type": "deepseek_v32", "q_lora_rank": 6, "index_n_heads": 2, "index_head_dim": 6, "index_topk": 8},
    "student": {"model_type": "qwen3", "num_attention_heads": 4, "num_key_value_heads": 2},
    "llama": {"model_type": "llama", "attention_bias": True, "tie_word_embeddings": True},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_models_of_every_family_are_made_and_judged(make_run, make_config, quiet, tmp_path, family):
    config = make_config(num_nextn_predict_layers=int(family == "v3.2"), **FAMILIES[family])
    path = tmp_path / f"{config.model_type}.json"
    path.write_text(json.dumps(config.to_dict()))
    run = make_run("other", model=str(path))
    stages.make(run)
    before, after = load_model(run.latest("pretrain")), load_model(run.latest("sft"))
    changed = {name for name, p in after.named_parameters() if not torch.equal(p, before.get_parameter(name))}
    # The attention learns under an indexer that stays as it is.
    assert changed == {name for name, _ in after.named_parameters() if "indexer" not in name}
    assert after.config.to_dict()["architectures"] == config.to_dict()["architectures"]
    assert run.summary["grpo"].get("logprob_gap", 0) < 1e-4
    assert run.summary["accuracy"].keys() == TASKS


def test_a_measured_machine_says_beforehand_what_a_run_will_take(make_run, quiet, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    save_rates(RATES)
    run = make_run()
    stages.make(run, "tokenizer")
    assert "planned: tokenizer" in capsys.readouterr().err
    plan = run.summary["plan"]
    assert list(plan) == list(STAGES) and all(one["seconds"] > 0 for one in plan.values())
    assert plan["tokenizer"]["tokens"] == pytest.approx(run.summary["tokenizer"]["tokens"], rel=0.1)
    stages.make(run, "pretrain")
    assert run.summary["plan"] == plan, "a plan is what was said before the run"


def test_the_whole_line(make_run, quiet, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))  # a machine that was not measured: no plan
    run = make_run(threads=2, sft__steps=8, grpo__format_reward=0.5)
    stages.make(run)
    told = capsys.readouterr().err
    cost = r"(MFU [\d.]+%, )?[\d.]+ J, (less than )?\$0\.\d+"
    assert re.search(rf"grpo: 4 of 4, .*reward [\d.]+, {cost}", told), "what it has cost so far"
    summary = run.summary
    assert summary.keys() == {*STAGES, "accuracy", "mtp", "totals", "machine", "model", "contamination"}
    for stage in STAGES:
        assert summary[stage].keys() >= COSTS | {"done"} and summary[stage]["done"] is True
    assert summary["tokenizer"].keys() >= {"vocab_size", "documents", "train_tokens", "validation_bytes"}
    assert summary["pretrain"].keys() >= {"steps", "validation_loss", "bits_per_byte", "corpus_passes"}
    assert summary["sft"].keys() >= {"steps", "traces", "heldout_largest", "heldout_running_total"}
    assert summary["grpo"]["steps"] == 4 and summary["grpo"]["samples"] == 64
    assert summary["accuracy"].keys() == TASKS
    for figures in summary["accuracy"].values():
        assert figures.keys() >= {"base", "sft", "grpo", "n", "interval", "pass_at_k", "sound"} and figures["n"] == 16
    assert 0 <= summary["mtp"]["acceptance"] <= 1
    assert summary["contamination"]["problems"] == 2 * 16 and missing_fields(run.card_path.read_text()) == []
    config = load_preset(run.recipe.model)
    assert summary["model"]["name"] == run.recipe.model
    trained = load_model(run.latest("grpo"))
    without_mtp = sum(p.numel() for name, p in trained.named_parameters() if not name.startswith("model.layers.3."))
    assert summary["model"]["parameters"] == without_mtp > summary["model"]["active_parameters"] > config.hidden_size
    machine = summary["machine"]
    assert machine.keys() == {
        *("processor", "cores", "memory_bytes", "device", "torch", "python", "leanseek", "commit"),
    }
    assert machine["torch"] == torch.__version__ and machine["leanseek"] == leanseek.__version__

    ledger = lines(run.ledger_path)
    assert [row["stage"] for row in ledger] == list(STAGES)
    for key in SUMMED:
        assert sum(row[key] for row in ledger) == pytest.approx(summary["totals"][key])
        for row in ledger:
            assert row[key] == pytest.approx(summary[row["stage"]][key])
    assert all(row["seconds"] > 0 and row["tokens"] > 0 for row in ledger)
    assert summary["totals"]["peak_memory_bytes"] == max(row["peak_memory_bytes"] for row in ledger)

    samples = lines(run.samples_path)
    assert len(samples) == len(TASKS) * 6 * 3
    for at in range(0, len(samples), 3):
        assert [sample["stage"] for sample in samples[at : at + 3]] == ["base", "sft", "grpo"]
        assert len({(sample["environment"], sample["prompt"], sample["gold"]) for sample in samples[at : at + 3]}) == 1
    gaps = [row["logprob_gap"] for row in RunLog(run.metrics_path).read("grpo") if "logprob_gap" in row]
    assert all(gap < 1e-5 for gap in gaps)
    assert "<html" in run.report_path.read_text() and "running_total" in run.report_path.read_text()
    assert "running_total" in run.card_path.read_text()
    names = [path.name for path in run.checkpoints()]
    assert names == ["pretrain-6", "sft-8", "grpo-4"]

    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.name != ".lock"}
    capsys.readouterr()
    stages.make(run)
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*") if path.name != ".lock"} == before
    assert capsys.readouterr().err.splitlines() == [f"{stage}: done already" for stage in STAGES]


def test_until_makes_what_comes_before_and_no_more(make_run, quiet):
    run = make_run()
    with pytest.raises(RunError, match="stage 'pretrian' is not known; did you mean pretrain"):
        stages.make(run, "pretrian")
    stages.make(run, "pretrain")
    assert [stage for stage in STAGES if run.stage_done(stage)] == ["tokenizer", "pretrain"]
    assert run.report_path.is_file() and run.card_path.is_file() and run.summary["totals"]["tokens"] > 0


def weights(run: Run, stage: str) -> dict[str, torch.Tensor]:
    return load_model(run.latest(stage)).state_dict()


def test_a_stage_that_was_interrupted_goes_on_and_both_parts_are_charged(make_run, quiet, monkeypatch, capsys):
    whole, parts = make_run("whole"), make_run("parts")
    stages.make(whole, "sft")
    real = RunLog.log

    def interrupt(self, stage: str, step: int, **values: object) -> None:
        real(self, stage, step, **values)
        if (stage, step) == ("sft", 2):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunLog, "log", interrupt)
    with pytest.raises(KeyboardInterrupt):
        stages.make(parts, "sft")
    monkeypatch.undo()
    monkeypatch.setattr(stages, "share_out", lambda threads, device: 1)
    assert parts.latest().name == "sft-2" and not parts.stage_done("sft") and parts.stage_done("pretrain")
    capsys.readouterr()
    stages.make(parts, "sft")
    assert "sft: going on" in capsys.readouterr().err
    one, other = weights(whole, "sft"), weights(parts, "sft")
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    rows = [row for row in lines(parts.ledger_path) if row["stage"] == "sft"]
    assert len(rows) == 2 and parts.summary["sft"]["tokens"] == sum(row["tokens"] for row in rows)
    assert parts.summary["sft"]["seconds"] == pytest.approx(sum(row["seconds"] for row in rows))
    # Nothing is trained twice: together the parts read as many tokens as the whole.
    assert parts.summary["sft"]["tokens"] == whole.summary["sft"]["tokens"]


def test_two_processes_never_work_on_one_run(make_run, quiet):
    run = make_run()
    with run.lock(), pytest.raises(RunError, match="another process is working on"):
        stages.make(run)


def test_a_full_disk_leaves_what_was_saved_and_the_line_goes_on(make_run, quiet, monkeypatch):
    run = make_run()
    stages.make(run, "tokenizer")
    real, calls = resume.save_file, []

    def full(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(resume, "save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left.*earlier checkpoints are untouched"):
        stages.make(run, "pretrain")
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["pretrain-3"]
    stages.make(run, "pretrain")
    assert run.latest().name == "pretrain-6" and run.stage_done("pretrain")
    assert len([row for row in lines(run.ledger_path) if row["stage"] == "pretrain"]) == 2


@pytest.mark.parametrize("lost", ["corpus", "tokenizer"])
def test_a_run_that_lost_what_it_stands_on_says_what_to_do(make_run, quiet, lost):
    run = make_run()
    stages.make(run, "tokenizer")
    (file,) = [f for f in (run.folder / lost).iterdir() if f.name in ("tokens.safetensors", "tokenizer.json")]
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises((DataError, CheckpointError), match=rf"{lost}.*(missing or damaged|not a tokenizer)"):
        stages.make(run, "pretrain")


def test_ones_own_text_is_read_and_an_empty_folder_is_told(make_run, quiet, tmp_path):
    (tmp_path / "text").mkdir()
    sources = {"data__sources": str(tmp_path / "text")}
    with pytest.raises(DataError, match=r"text has no \.txt, \.jsonl or \.parquet file in it"):
        stages.make(make_run("empty", **sources))
    words = [f"{a} and {b} make {a + b}." for a in range(20) for b in range(20)]
    (tmp_path / "text" / "sums.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in words))
    run = make_run("own", **sources)
    stages.make(run, "pretrain")
    assert run.summary["tokenizer"]["documents"] == 400 and run.summary["pretrain"]["steps"] == 6


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"tokenizer__vocab_size": 400}, "tokenizer.vocab_size = 400, but the model .* has rows for 320 tokens"),
        ({"data__sequence_tokens": 4096}, "data.sequence_tokens = 4096 is more than the model's context of 128"),
        ({"device": "cuda"}, "torch finds no CUDA device here"),
    ],
)
def test_what_does_not_fit_together_is_told_before_anything_is_made(make_run, quiet, monkeypatch, changes, complaint):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = make_run(**changes)
    with pytest.raises(ConfigError, match=complaint):
        stages.make(run)
    assert run.summary == {} and not run.ledger_path.exists()
    if "device" not in changes:
        with pytest.raises(ConfigError, match=complaint):
            stages.dry_run(run.recipe)


@pytest.mark.parametrize("model", ["laptop", "one-gpu", "deepseek-v3"])
def test_a_dry_run_describes_any_size_and_makes_nothing(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pretrain = {"steps": 100, "batch_sequences": 8}
    start_s = time.process_time()
    plan = stages.dry_run(Recipe.model_validate({"model": model, "pretrain": pretrain, "grpo": {"minutes": 2.0}}))
    assert time.process_time() - start_s < 5, "nothing of the model's size is allocated"
    assert list(tmp_path.iterdir()) == []
    assert json.loads(json.dumps(plan)) == plan
    assert plan["model"] == model and plan["active_parameters"] <= plan["parameters"]
    if model == "deepseek-v3":
        assert plan["parameters"] / 1e9 == pytest.approx(671.026, abs=0.001)
        assert plan["active_parameters"] / 1e9 == pytest.approx(37.552, abs=0.001)
    assert plan["weights_bytes"] == 4 * (plan["parameters"] + plan["mtp_parameters"])
    assert plan["training_state_bytes"] == 4 * plan["weights_bytes"]
    assert plan["pretrain_tokens_per_step"] == 8 * 128 and plan["pretrain_tokens"] == 100 * 8 * 128
    assert plan["pretrain_flops"] == plan["pretrain_tokens"] * plan["training_flops_per_token"]
    assert (plan["grpo_steps"], plan["grpo_minutes"], plan["sft_steps"]) == (None, 2.0, None)
    assert math.isfinite(plan["training_flops_per_token"])


def test_a_dry_run_of_a_budget_in_minutes_promises_no_tokens():
    plan = stages.dry_run(Recipe.model_validate({"pretrain": {"minutes": 3.0}}))
    assert plan["pretrain_steps"] is plan["pretrain_tokens"] is plan["pretrain_flops"] is None
    assert plan["pretrain_minutes"] == 3.0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_training_state_is_as_large_as_a_dry_run_says(make_run, dtype):
    run = make_run(dtype=dtype)
    model = empty_model(load_preset(run.recipe.model), dtype=dtype)
    state = Optimiser(model, OptimiserSettings(name="adamw")).state_dict()
    kept = [tensor for group in STATE for tensor in state[group].values()]
    held = sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.parameters(), *kept])
    assert stages.dry_run(run.recipe)["training_state_bytes"] == held


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("lacking.txt", None, "there is no such file"),
        ("empty.jsonl", b"", "there is no text in it"),
        ("latin.jsonl", b'{"text": "caf\xe9"}\n', "is not UTF-8 text"),
        ("other.jsonl", b'{"content": "x"}\n', 'line 1: an object with a "text" is needed'),
    ],
)
def test_a_dry_run_looks_at_the_text(make_run, tmp_path, name, text, complaint):
    if text is not None:
        (tmp_path / name).write_bytes(text)
    run = make_run(data__sources=[str(tmp_path / name)])
    with pytest.raises(DataError, match=complaint):
        stages.dry_run(run.recipe)


def test_a_run_on_shards_ends_with_a_card_that_names_their_texts(make_run, quiet, tiny_tokenizer, tmp_path):
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"{n} plus {n} is {n + n}"}) + "\n" for n in range(400))
    )
    wishes = Wishes(validation_fraction=0.1, license="CC0-1.0")
    Preparation([str(tmp_path / "text.jsonl")], tmp_path / "shards", tiny_tokenizer, wishes).run()
    run = make_run(data__shards=(str(tmp_path / "shards"),), data__mask_documents=True)
    stages.make(run, until="pretrain")
    assert Tokenizer.load(run.tokenizer_folder).digest_text() == tiny_tokenizer.digest_text()
    assert run.summary["tokenizer"]["documents"] == 400 and run.summary["pretrain"]["done"]
    card = run.card_path.read_text()
    assert "text.jsonl: CC0-1.0, SHA-256" in card
