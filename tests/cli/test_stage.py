from __future__ import annotations

import pytest

from leanseek import stages
from leanseek.cli.app import main
from leanseek.run import STAGES, Run
from leanseek.settings import load_recipe


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "eval"])
def test_a_stage_makes_the_line_up_to_itself(stage: str, monkeypatch, tmp_path):
    calls: list[str] = []
    monkeypatch.setattr(stages, "make", lambda run, until: calls.append(until))
    key, value = ("vocab_size", 400) if stage == "tokenizer" else ("steps", 3)
    assert main([stage, "laptop", "--run", str(tmp_path / "run"), f"--train.{key}", str(value)]) == 0
    assert calls == [stage]
    assert Run.open(tmp_path / "run").recipe == load_recipe("laptop", {f"{stage}.{key}": value})


def test_the_tokenizer_is_really_made(tmp_path, capsys):
    run = tmp_path / "run"
    tokens = ["tokenizer", "laptop", "--run", str(run), "--data.documents", "60", "--train.training_documents", "60"]
    assert main([*tokens, "--train.vocab_size", "300"]) == 0
    assert Run.open(run).stage_done("tokenizer") and (run / "tokenizer" / "tokenizer.json").is_file()
    assert main([*tokens, "--train.vocab_size", "300"]) == 0
    assert "tokenizer: done already" in capsys.readouterr().err
