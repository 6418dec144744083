from __future__ import annotations

import json

import pytest

from leanseek.checkpoint.directory import save_model
from leanseek.cli.app import main
from leanseek.run import Run
from leanseek.settings import load_recipe


@pytest.fixture
def folder(tmp_path, tiny_model, tiny_tokenizer):
    save_model(tiny_model, tmp_path / "model", tiny_tokenizer)
    return tmp_path / "model"


def measured(capsys, *tokens: str) -> dict:
    assert main(["eval", *tokens, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_model_is_measured_on_the_tasks_asked_for(folder, capsys):
    tokens = (str(folder), "--env", "largest", "running_total", "--problems", "6", "--samples", "2")
    found = measured(capsys, *tokens, "--max-new-tokens", "4", "--level", "3")
    assert [task["environment"] for task in found["tasks"]] == ["largest", "running_total"]
    for task in found["tasks"]:
        assert task["n"] == 6 and set(task["pass_at_k"]) == {"1", "2"} and list(task["levels"]) == ["3"]
        assert 0 <= task["interval"][0] <= task["greedy"] <= task["interval"][1] <= 1


def test_a_run_says_which_tasks_and_levels(folder, tmp_path, capsys):
    recipe = load_recipe("laptop", {"environments": ["largest"], "levels": {"largest": [4]}})
    run = Run.create(tmp_path / "run", recipe)
    folder.rename(run.folder / "model")
    (run.folder / "checkpoints").mkdir()
    (run.folder / "model").rename(run.checkpoint("sft", 3))
    tokens = (str(run.folder), "--problems", "3", "--samples", "0", "--max-new-tokens", "2")
    found = measured(capsys, *tokens)
    assert found["model"] == str(run.checkpoint("sft", 3))
    assert [(task["environment"], list(task["levels"])) for task in found["tasks"]] == [("largest", ["4"])]
    assert main(["eval", *tokens]) == 0
    page = capsys.readouterr().out
    assert page.startswith("largest: 0.0% (0.0% to ") and "a token of the" in page and "energy: " in page
    assert found["energy"]["joules"] > 0 and found["energy"]["tokens"] > 0 and found["energy"]["meter"]


def test_an_unknown_task_is_told_before_anything_is_loaded(folder, capsys):
    assert main(["eval", str(folder), "--env", "lagrest"]) == 1
    assert "did you mean largest?" in capsys.readouterr().err
