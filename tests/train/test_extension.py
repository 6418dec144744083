"""A longer context: V3's own figures, a line of two phases, its config, and that going on is exact."""

from __future__ import annotations

import json
import signal

import pytest

from leanseek import stages
from leanseek.checkpoint.directory import load_model, save_model
from leanseek.cli.app import main
from leanseek.errors import ConfigError
from leanseek.log import RunLog
from leanseek.model.config import ModelConfig, load_preset
from leanseek.run import Run
from leanseek.sections.training import ExtendSettings
from leanseek.settings import load_recipe
from leanseek.train.extension import stretched

from .test_stage import assert_same_checkpoint

PHASES = {"halfway": {"kind": "extend", "sequence_tokens": 64}, "extend": {"sequence_tokens": 96}}


@pytest.fixture
def make_longer(make_run, monkeypatch):
    monkeypatch.setattr(stages, "share_out", lambda threads, device: threads or 1)
    changes = {"extend__steps": 4, "extend__batch_sequences": 4, "extend__factor": 4.0, "extend__checkpoint_every": 2}

    def make(name: str = "run", **more: object) -> Run:
        return make_run(name, stages=PHASES, environments=["running_total"], **(changes | more))

    return make


def test_both_phases_of_v3_give_its_config():
    base = load_preset("deepseek-v3").replace(rope_scaling=None, max_position_embeddings=4096)
    first = stretched(base, ExtendSettings(sequence_tokens=32_768, factor=40), 4096)
    second = stretched(first, ExtendSettings(sequence_tokens=131_072, factor=40), 1)
    for config in (first, second):
        assert config.max_position_embeddings == load_preset("deepseek-v3").max_position_embeddings
        assert dict(config.rope_scaling) == dict(load_preset("deepseek-v3").rope_scaling)


def test_without_a_factor_it_is_as_much_as_is_needed():
    base = load_preset("laptop")
    first = stretched(base, ExtendSettings(sequence_tokens=512), 128)
    assert (first.yarn["factor"], first.max_position_embeddings) == (4.0, 512)
    second = stretched(first, ExtendSettings(sequence_tokens=1000), 1)
    assert (second.yarn["factor"], second.max_position_embeddings) == (7.8125, 1000)
    assert second.yarn["original_max_position_embeddings"] == 128
    assert stretched(base, ExtendSettings(sequence_tokens=64), 128).yarn["factor"] == 1.0, "never shorter"


def test_two_phases_after_pretraining(make_longer, capsys):
    run = make_longer()
    stages.make(run, "extend")
    for name, length in (("halfway", 64), ("extend", 96)):
        config = ModelConfig.from_file(run.latest(name) / "config.json")
        assert config.yarn["factor"] == 4.0 and config.yarn["original_max_position_embeddings"] == 32
        assert config.max_position_embeddings == 128
        figures = run.summary[name]
        assert [*figures["loss_by_length"]] == ["32", "64", "96"][: 2 if length == 64 else 3]
        assert figures["loss_by_length"][str(length)] < figures["before"][str(length)], "it reads longer texts better"
        assert figures["steps"] == 4 and figures["context_tokens"] == 128
    assert run.summary["model"]["context_tokens"] == 128
    assert "loss of unseen text, before and after: 32 tokens" in capsys.readouterr().err


def test_a_stopped_phase_goes_on_bit_for_bit(make_longer, monkeypatch):
    whole, parts = make_longer("whole"), make_longer("parts")
    stages.make(whole, "extend")
    log = RunLog.log

    def interrupting(self, stage, step, **values):
        log(self, stage, step, **values)
        if (stage, step) == ("extend", 3):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunLog, "log", interrupting)
    with pytest.raises(KeyboardInterrupt):
        stages.make(parts, "extend")
    monkeypatch.undo()
    monkeypatch.setattr(stages, "share_out", lambda threads, device: threads or 1)
    stages.make(parts, "extend")
    assert_same_checkpoint(whole, parts, "extend")
    assert whole.summary["extend"]["loss_by_length"] == parts.summary["extend"]["loss_by_length"]


def test_from_a_folder_with_text_of_ones_own(tmp_path, monkeypatch, make_model, tiny_tokenizer, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages, "share_out", lambda threads, device: threads or 1)
    save_model(make_model(), "given", tiny_tokenizer)
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": f"{n} is {n} " * 40}) + "\n" for n in range(60)))
    words = ["extend", "--model", "given", "--run", "run", "--threads", "1", "--train.steps", "2"]
    lengths = [
        "--train.original_tokens",
        "16",
        "--train.sequence_tokens",
        "64",
        "--stages.halfway.sequence_tokens",
        "32",
    ]
    assert (
        main(words) in (1, 2)
        and "halfway has nothing to read: give your own text as data.sources" in capsys.readouterr().err
    )
    assert main([*words, *lengths, "--data.sources", "text.jsonl"]) == 0
    run = Run.open("run")
    assert list(run.recipe.line) == ["halfway", "extend", "eval"]
    assert load_model(run.latest()).config.yarn["factor"] == 8.0
    assert main(["extend", "--run", "elsewhere"]) == 2


def test_a_recipe_without_text_is_refused_before_anything_is_made(tmp_path, tiny_model, tiny_tokenizer):
    save_model(tiny_model, tmp_path / "given", tiny_tokenizer)
    settings = {"model": str(tmp_path / "given" / "config.json"), "grpo.start": str(tmp_path / "given")}
    with pytest.raises(ConfigError, match="halfway has nothing to read"):
        stages.dry_run(load_recipe("longer", settings))
