from __future__ import annotations

import json
from pathlib import Path

import pytest

from leanseek import stages
from leanseek.cli.app import main
from leanseek.cli.make import summary_lines
from leanseek.run import Run
from leanseek.settings import load_recipe


@pytest.fixture
def made(monkeypatch, tmp_path) -> list[tuple[Path, str]]:
    """Record what would be made; commands run in an empty folder."""
    calls: list[tuple[Path, str]] = []

    def make(run: Run, until: str = "eval", ranks: None = None) -> None:
        calls.append((run.folder, until))
        for stage in ("tokenizer", "pretrain"):
            run.finish(stage, {"seconds": 1.0})

    monkeypatch.setattr(stages, "make", make)
    monkeypatch.chdir(tmp_path)
    return calls


def test_the_default_is_the_laptop_in_its_own_folder(made, capsys):
    assert main(["make"]) == 0
    assert made == [(Path("runs/laptop"), "eval")]
    assert Run.open("runs/laptop").recipe == load_recipe("laptop")
    assert capsys.readouterr().out.startswith("runs/laptop")


def test_settings_go_into_the_run(made):
    assert main(["make", "laptop", "--run", "here", "--grpo.steps", "7", "--threads", "1"]) == 0
    assert Run.open("here").recipe == load_recipe("laptop", {"grpo.steps": 7, "threads": 1})


def test_a_recipe_file_names_its_folder(made, tmp_path):
    (tmp_path / "mine.toml").write_text('# mine: a test\nextends = "laptop"\nseed = 5\n')
    assert main(["make", "./mine.toml"]) == 0
    assert Run.open("runs/mine").recipe.seed == 5


def test_a_run_goes_on_with_its_own_settings_where_no_recipe_is_named(made):
    assert main(["make", "laptop", "--run", "here", "--grpo.steps", "7"]) == 0
    assert main(["make", "--run", "here", "--eval.problems", "9"]) == 0
    recipe = Run.open("here").recipe
    assert (recipe.grpo.steps, recipe.eval.problems) == (7, 9)
    assert main(["make", "laptop", "--run", "here"]) == 0
    assert Run.open("here").recipe == load_recipe("laptop")


def test_what_a_run_has_used_cannot_be_changed(made, capsys):
    assert main(["make", "laptop", "--run", "here"]) == 0
    assert main(["make", "--run", "here", "--pretrain.steps", "7"]) == 1
    assert "begun with pretrain.steps" in capsys.readouterr().err
    assert len(made) == 1 and Run.open("here").recipe == load_recipe("laptop")
    assert main(["make", "--run", "here", "--fresh", "--pretrain.steps", "7"]) == 0
    run = Run.open("here")
    assert run.recipe.pretrain.steps == 7 and len(made) == 2


def test_fresh_clears_a_damaged_run_but_nothing_else(made, capsys):
    assert main(["make", "--run", "here"]) == 0
    Path("here/recipe.toml").write_text("not = [toml")
    Path("here/notes.txt").write_text("mine")
    assert main(["make", "--run", "here"]) in (1, 2)
    assert main(["make", "--run", "here", "--fresh"]) == 1  # the notes are in the way, and stay
    assert Path("here/notes.txt").read_text() == "mine"
    Path("here/notes.txt").unlink()
    assert main(["make", "--run", "here", "--fresh"]) == 0


def test_resume_wants_a_run(made, capsys):
    assert main(["make", "--resume"]) == 1 and made == []
    assert "runs/laptop is not a run folder" in capsys.readouterr().err
    assert not Path("runs").exists()
    assert main(["make"]) == main(["make", "--resume"]) == 0


def test_a_folder_of_something_else_is_left_alone(made, capsys):
    Path("here").mkdir()
    Path("here/thesis.doc").write_text("years of work")
    for tokens in (["make", "--run", "here"], ["make", "--run", "here", "--fresh"]):
        assert main(tokens) == 1
        assert "here is neither empty nor a run" in capsys.readouterr().err
    assert made == [] and Path("here/thesis.doc").read_text() == "years of work"


def test_a_run_in_use_is_not_cleared(made, capsys):
    assert main(["make", "--run", "here"]) == 0
    with Run.open("here").lock():
        assert main(["make", "--run", "here", "--fresh"]) == 1
    assert "another process is working on here" in capsys.readouterr().err
    assert Run.is_run("here")


def test_json_is_the_summary(made, capsys):
    assert main(["make", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == Run.open("runs/laptop").summary


def test_interrupted_work_says_how_to_go_on(made, capsys, monkeypatch):
    def stop(run: Run, until: str, ranks: None = None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "make", stop)
    assert main(["grpo", "--run", "here"]) == 130
    assert capsys.readouterr().err == ("stopped; what is done is saved in here: go on with leanseek grpo --run here\n")


def test_a_dry_run_tells_and_writes_nothing(made, capsys, tmp_path):
    assert main(["make", "--dry-run", "--json", "--pretrain.steps", "7"]) == 0
    assert json.loads(capsys.readouterr().out)["pretrain_steps"] == 7
    assert main(["make", "one-gpu" if "one-gpu" in _recipes() else "laptop", "--dry-run"]) == 0
    assert "parameters" in capsys.readouterr().out
    assert made == [] and list(tmp_path.iterdir()) == []


def _recipes() -> list[str]:
    from leanseek.settings import recipe_names

    return recipe_names()


def test_the_summary_says_cost_accuracy_and_where_to_look(tmp_path):
    run = Run.create(tmp_path / "run", load_recipe("laptop"))
    assert summary_lines(run) == [str(run.folder)]
    run.update("totals", {"seconds": 600, "flops": 1e15, "joules": 2e4, "usd": 0.01, "meter": "estimated:virtual-cpu"})
    run.update("pretrain", {"joules": 1e4, "tokens": 1_000_000})
    run.update("accuracy", {"largest": {"base": 0.0, "sft": 0.5, "grpo": 0.75, "n": 512}})
    run.card_path.write_text("card")
    lines = summary_lines(run)
    assert "10 min" in lines[0] and "PFLOP" in lines[0] and "kJ" in lines[0]
    assert "sft 50" in lines[1] and "grpo 75" in lines[1] and "512" in lines[1]
    assert "energy: 0.01 J a token pretrained; estimated as 3.5 W for a busy core" in lines[2]
    assert lines[3].strip() == str(run.card_path) and len(lines) == 4
