from __future__ import annotations

import json

import pytest

from leanseek import stages
from leanseek.checkpoint.directory import save_model
from leanseek.cli.app import main
from leanseek.errors import RunError
from leanseek.run import STAGES, Run, stages_of
from leanseek.settings import load_recipe


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "eval"])
def test_a_stage_makes_the_line_up_to_itself(stage: str, monkeypatch, tmp_path):
    calls: list[str] = []
    monkeypatch.setattr(stages, "make", lambda run, until, ranks: calls.append(until))
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


@pytest.fixture
def planned(monkeypatch) -> list[tuple[Run, str]]:
    """Have nothing made; return what would have been."""
    calls: list[tuple[Run, str]] = []
    monkeypatch.setattr(stages, "make", lambda run, until, ranks: calls.append((run, until)))
    return calls


def test_reinforcement_from_a_model_folder_on_a_task(planned, tmp_path, monkeypatch, tiny_model, tiny_tokenizer):
    monkeypatch.chdir(tmp_path)
    save_model(tiny_model, "given", tiny_tokenizer)
    assert (
        main(["grpo", "--model", "given", "--env", "largest", "--env", "countdown,sorting", "--train.epochs", "2"]) == 0
    )
    ((run, until),) = planned
    assert until == "grpo" and run.folder.resolve() == tmp_path / "runs" / "reasoner"
    recipe = run.recipe
    assert recipe.name == "reasoner" and recipe.environments == ("largest", "countdown", "sorting")
    assert recipe.grpo.start == str(tmp_path / "given") and recipe.model == str(tmp_path / "given" / "config.json")
    assert recipe.grpo.epochs == 2 and stages_of(recipe) == ("grpo", "eval")
    # Going on needs neither; a run folder stands for its newest checkpoint.
    assert main(["grpo", "--run", "runs/reasoner"]) == 0 and planned[1][0].recipe == recipe
    assert main(["grpo", "--model", "given", "--run", "runs/reasoner"]) == 0 and planned[2][0].recipe == recipe
    save_model(tiny_model, run.checkpoint("grpo", 3), tiny_tokenizer)
    more = ["grpo", "--model", "runs/reasoner", "--run", "runs/second", "--env", "largest", "--train.cold_start"]
    assert main(more) == 0
    second = planned[3][0].recipe
    assert second.grpo.start == str(run.checkpoint("grpo", 3).resolve())
    assert second.grpo.cold_start and stages_of(second) == ("sft", "grpo", "eval")


def test_fine_tuning_of_a_model_folder_on_a_file(planned, tmp_path, monkeypatch, tiny_model, tiny_tokenizer):
    monkeypatch.chdir(tmp_path)
    save_model(tiny_model, "given", tiny_tokenizer)
    assert main(["sft", "--model", "given", "--data", "mine.jsonl", "--train.lora_rank", "8"]) == 0
    ((run, until),) = planned
    recipe = run.recipe
    assert until == "sft" and run.folder.resolve() == tmp_path / "runs" / "tuner" and recipe.name == "tuner"
    assert stages_of(recipe) == ("sft", "eval") and recipe.grpo.start == str(tmp_path / "given")
    assert recipe.sft.data == str(tmp_path / "mine.jsonl") and recipe.sft.lora_rank == 8
    assert main(["sft", "--run", "runs/tuner"]) == 0 and planned[1][0].recipe == recipe


def test_preferences_from_a_model_folder_on_a_file(planned, tmp_path, monkeypatch, tiny_model, tiny_tokenizer):
    monkeypatch.chdir(tmp_path)
    save_model(tiny_model, "given", tiny_tokenizer)
    assert main(["dpo", "--model", "given", "--data", "p.jsonl", "--run", "run", "--train.beta", "0.3"]) == 0
    ((run, until),) = planned
    recipe = run.recipe
    assert until == "dpo" and stages_of(recipe) == ("dpo", "eval") and recipe.dpo.beta == 0.3
    assert recipe.dpo.data == str(tmp_path / "p.jsonl") and recipe.grpo.start == str(tmp_path / "given")
    assert main(["dpo", "--run", "run"]) == 0 and planned[1][0].recipe == recipe


def test_a_recipe_that_is_named_is_taken_and_presets_are_models_too(planned, tmp_path, tiny_model, tiny_tokenizer):
    save_model(tiny_model, tmp_path / "given", tiny_tokenizer)
    run = ["--run", str(tmp_path / "run")]
    assert main(["grpo", "evening", "--model", str(tmp_path / "given"), *run]) == 0
    assert planned[0][0].recipe.name == "evening" and planned[0][0].recipe.grpo.start is not None
    assert main(["grpo", "--model", "evening", "--run", str(tmp_path / "other")]) == 0
    assert planned[1][0].recipe.model == "evening" and planned[1][0].recipe.grpo.start is None


def test_a_plan_from_a_model_folder_has_no_pretraining(tmp_path, tiny_model, tiny_tokenizer, capsys):
    save_model(tiny_model, tmp_path / "given", tiny_tokenizer)
    words = ["grpo", "--model", str(tmp_path / "given"), "--env", "largest", "--run", str(tmp_path / "x"), "--dry-run"]
    assert main([*words, "--data.sequence_tokens", "64", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["start"] == str(tmp_path / "given") and plan["environments"] == ["largest"]
    assert not any(key.startswith(("pretrain", "sft")) for key in plan) and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["grpo", "--env", "a", "--environments", "b"], "--env and --environments say the same"),
        (["dpo", "--data", "x"], "who learns? give --model FOLDER"),
        (["dpo", "--model", "given"], "what is to be learnt? give --data FILE"),
        (["sft", "--model", "given"], "what is to be learnt? give --data FILE"),
        (["sft", "--model", "given", "--data", "gone.jsonl"], "gone.jsonl: there is no such file"),
        (["sft", "--model", "given", "--data", "x", "--train.too_long", "maybe"], "sft.too_long = 'maybe'"),
        (["grpo", "--model", "."], "neither a run folder (recipe.toml) nor a model folder (config.json)"),
        (["grpo", "--model", "given", "--env", "largst"], "did you mean largest"),
        (["grpo", "--train.overlong_tokens", "90"], "at most max_new_tokens = 80 is accepted"),
        (["grpo", "--train.minibatches", "65"], "at most prompts_per_step = 64 is accepted"),
        (["grpo", "--train.objective", "ppo"], "grpo.objective = 'ppo'"),
        (["make", "--env", "largest"], "--env"),
    ],
)
def test_what_cannot_be_is_told(words, said, tmp_path, monkeypatch, tiny_model, tiny_tokenizer, capsys):
    monkeypatch.chdir(tmp_path)
    save_model(tiny_model, "given", tiny_tokenizer)
    settings = ["--data.sequence_tokens", "64"] if words[0] == "grpo" else []
    assert main([*words, *settings, "--run", "run"]) in (1, 2)
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("run/checkpoints"))


def test_a_run_from_a_folder_has_no_earlier_stage(tmp_path, tiny_model, tiny_tokenizer):
    save_model(tiny_model, tmp_path / "given", tiny_tokenizer)
    run = Run.create(tmp_path / "run", load_recipe("reasoner", {"grpo.start": str(tmp_path / "given")}))
    with pytest.raises(RunError, match="it has no stage 'pretrain', only grpo, eval"):
        stages.make(run, "pretrain")
