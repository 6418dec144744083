from __future__ import annotations

import pytest
import torch

from leanseek.checkpoint.directory import load_model, save_model
from leanseek.cli.app import main


@pytest.fixture
def run(make_run, make_model, tiny_tokenizer):
    made = make_run()
    for seed in range(3):
        save_model(make_model(seed=seed), made.checkpoint("pretrain", seed + 1), tiny_tokenizer)
    return made


def test_the_last_checkpoints_of_a_run(run, tmp_path, capsys):
    assert main(["average", str(run.folder), "--last", "2", "--out", str(tmp_path / "mean")]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'mean'}: the mean of 2 models\n"
    assert "averaging pretrain-2, pretrain-3" in printed.err
    heads = [load_model(run.checkpoint("pretrain", step)).lm_head.weight for step in (2, 3)]
    found = load_model(tmp_path / "mean").lm_head.weight
    assert torch.equal(found, torch.stack(heads).double().mean(0).float())


def test_folders_by_name(run, tmp_path):
    named = [str(run.checkpoint("pretrain", step)) for step in (1, 3)]
    assert main(["average", *named, "--out", str(tmp_path / "mean")]) == 0
    assert main(["average", str(run.folder), "--out", str(tmp_path / "all")]) == 0


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["run", "--last", "1"], 2, "--last 1: at least 2"),
        (["run", "--last", "4"], 1, "run has 3 of pretrain, and 4 checkpoints are needed: train with --train.keep_"),
        (["run", "--stage", "sft"], 1, "run has 0 of sft, and 2 checkpoints are needed"),
        (["run/checkpoints/pretrain-1"], 2, "pretrain-1 alone has no mean"),
        (["run/checkpoints/pretrain-1", "--last", "2"], 2, "--stage and --last choose among a run's checkpoints"),
    ],
)
def test_a_mistake_is_one_sentence(run, tmp_path, capsys, monkeypatch, options, status, said):
    monkeypatch.chdir(tmp_path)
    assert main(["average", *options, "--out", "mean"]) == status
    assert said in capsys.readouterr().err and not (tmp_path / "mean").exists()
