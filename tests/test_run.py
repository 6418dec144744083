"""The run folder: made, opened, changed, locked, pruned, cleared; its recipe survives as TOML."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanseek.errors import CheckpointError, RunError
from leanseek.run import CONTENTS, STAGES, Run, flat, model_folder, to_toml
from leanseek.settings import Recipe, load_recipe, parse_recipe, recipe_names


def changed(recipe: Recipe = Recipe(), **values: object) -> Recipe:
    """Return a recipe with some settings changed; `grpo__steps=4` for grpo.steps."""
    nested = recipe.model_dump()
    for name, value in values.items():
        *parents, last = name.split("__")
        node = nested
        for parent in parents:
            node = node[parent]
        node[last] = value
    return parse_recipe(nested, "test")


def checkpoint(run: Run, stage: str, step: int, whole: bool = True) -> Path:
    folder = run.checkpoint(stage, step)
    folder.mkdir(parents=True)
    if whole:
        (folder / "config.json").write_text("{}")
    return folder


def test_a_run_is_made_and_opened_again(tmp_path):
    recipe = changed(seed=4, grpo__steps=9, levels={"largest": (3, 4)}, data__sources=("a b",))
    Run.create(tmp_path / "runs" / "mine", recipe)
    assert Run.is_run(tmp_path / "runs" / "mine")
    assert Run.open(tmp_path / "runs" / "mine").recipe == recipe


def test_a_folder_that_is_in_use_is_not_taken(tmp_path):
    Run.create(tmp_path / "mine", Recipe())
    with pytest.raises(RunError, match="is a run already; go on with it by --resume"):
        Run.create(tmp_path / "mine", Recipe())
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file"):
        Run.create(tmp_path / "file", Recipe())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(RunError, match="neither empty nor a run"):
        Run.create(tmp_path / "other", Recipe())
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".lock").write_text("")
    assert Run.create(tmp_path / "hidden", Recipe()).recipe == Recipe()


def test_what_is_not_a_run_is_refused_with_the_nearest_one(tmp_path):
    Run.create(tmp_path / "laptop", Recipe())
    with pytest.raises(RunError, match=rf"is not a run folder .*did you mean {tmp_path / 'laptop'}\?"):
        Run.open(tmp_path / "labtop")
    (tmp_path / "laptop" / "recipe.toml").write_text("seed = ")
    with pytest.raises(RunError, match=r"recipe\.toml: not valid TOML"):
        Run.open(tmp_path / "laptop")


@pytest.mark.parametrize("name", recipe_names())
def test_embedded_recipes_survive_as_toml(name):
    recipe = load_recipe(name)
    assert parse_recipe(tomllib.loads(to_toml(recipe)), "test") == recipe


@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    key=st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    number=st.floats(1e-300, 1e300),
)
@settings(max_examples=80, deadline=None, derandomize=True)
def test_any_setting_survives_as_toml(text, key, number):
    recipe = changed(name=text, data__sources=(text, "b"), levels={key: (1, 2)}, pretrain__minutes=number)
    assert parse_recipe(tomllib.loads(to_toml(recipe)), "test") == recipe


def test_every_setting_that_is_not_none_is_spelt_out():
    values, recipe = tomllib.loads(to_toml(Recipe())), Recipe()
    for key, value in flat(recipe).items():
        node = values
        for part in key.split("."):
            node = node.get(part, {}) if isinstance(node, dict) else {}
        assert (node == {} or node == []) if value in (None, {}, ()) else node != {}, key


def test_the_summary_is_laid_over_part_by_part(tmp_path):
    run = Run.create(tmp_path / "mine", Recipe())
    assert run.summary == {}
    run.update("pretrain", {"loss": 2.0, "steps": 3})
    run.update("pretrain", {"loss": 1.5})
    run.finish("tokenizer", {"size": 512})
    assert run.summary == {"pretrain": {"loss": 1.5, "steps": 3}, "tokenizer": {"size": 512, "done": True}}
    assert run.stage_done("tokenizer") and not run.stage_done("pretrain")
    assert run.stage_begun("pretrain") and not run.stage_begun("sft")


@pytest.mark.parametrize(("content", "message"), [("{", "not valid JSON"), ("[]", "a JSON object is needed, got list")])
def test_a_damaged_summary_is_told(tmp_path, content, message):
    run = Run.create(tmp_path / "mine", Recipe())
    (run.folder / "summary.json").write_text(content)
    with pytest.raises(RunError, match=message):
        _ = run.summary


def test_checkpoints_are_whole_and_in_order(tmp_path):
    run = Run.create(tmp_path / "mine", Recipe())
    assert run.checkpoints() == [] and run.latest() is None
    for step in (9, 100, 20):
        checkpoint(run, "pretrain", step)
    checkpoint(run, "sft", 5)
    checkpoint(run, "sft", 7, whole=False)
    checkpoint(run, "other", 3)
    (run.folder / "checkpoints" / ".pretrain-200.x7").mkdir()
    assert [p.name for p in run.checkpoints("pretrain")] == ["pretrain-9", "pretrain-20", "pretrain-100"]
    assert [p.name for p in run.checkpoints()] == ["pretrain-9", "pretrain-20", "pretrain-100", "sft-5"]
    assert run.latest() == run.checkpoint("sft", 5)
    assert run.latest("pretrain") == run.checkpoint("pretrain", 100) and run.latest("grpo") is None
    assert run.stage_begun("sft")


def test_pruning_keeps_the_newest(tmp_path):
    run = Run.create(tmp_path / "mine", Recipe())
    for step in (9, 100, 20):
        checkpoint(run, "pretrain", step)
    checkpoint(run, "sft", 1)
    run.prune("pretrain", 2)
    assert [p.name for p in run.checkpoints()] == ["pretrain-20", "pretrain-100", "sft-1"]
    run.prune("grpo", 1)
    run.prune("pretrain", 0)
    assert [p.name for p in run.checkpoints()] == ["sft-1"]


def test_settings_may_change_until_they_have_shaped_something(tmp_path):
    run = Run.create(tmp_path / "mine", Recipe())
    run.change(changed(seed=1, pretrain__steps=5))
    assert Run.open(run.folder).recipe.seed == 1
    run.finish("tokenizer")
    checkpoint(run, "pretrain", 3)
    fine = changed(run.recipe, sft__steps=7, grpo__optimiser__lr=0.5, pretrain__checkpoint_every=2, threads=1)
    fine = changed(fine, device="cuda", name="renamed", cost__usd_per_hour=9.0)
    run.change(fine)
    assert Run.open(run.folder).recipe == fine
    for values in ({"seed": 2}, {"pretrain__steps": 6}, {"tokenizer__vocab_size": 400}, {"data__documents": 5}):
        with pytest.raises(RunError, match=r"was begun with .*take another folder with --run"):
            run.change(changed(fine, **values))
        assert Run.open(run.folder).recipe == fine and run.recipe == fine


def test_a_refused_change_names_the_old_and_the_new_value(tmp_path):
    run = Run.create(tmp_path / "mine", Recipe())
    run.finish("pretrain")
    with pytest.raises(
        RunError, match=r'begun with model = "laptop" \(now "other"\), pretrain.steps = none \(now 4\); '
    ):
        run.change(changed(model="other", pretrain__steps=4))


def test_clearing_deletes_what_a_run_writes_and_nothing_else(tmp_path):
    run = Run.create(tmp_path / "mine", Recipe())
    for path in (run.metrics_path, run.ledger_path, run.samples_path, run.report_path, run.card_path):
        assert path.name in CONTENTS
        path.write_text("x")
    checkpoint(run, "pretrain", 1)
    run.finish("eval")
    for name in CONTENTS:
        if not (run.folder / name).exists():
            (run.folder / name).mkdir()
    assert {"corpus", "tokenizer", "checkpoints", "summary.json", "recipe.toml"} <= set(CONTENTS)
    (run.folder / "notes.txt").write_text("mine")
    run.clear()
    assert [p.name for p in run.folder.iterdir()] == ["notes.txt"]


def test_two_processes_never_hold_one_run(tmp_path):
    run = Run.create(tmp_path / "mine", Recipe())
    code = (
        "import sys\nfrom leanseek.errors import RunError\nfrom leanseek.run import Run\n"
        "try:\n    with Run.open(sys.argv[1]).lock():\n        pass\nexcept RunError as error:\n    print(error)\n"
    )

    def other() -> str:
        command = [sys.executable, "-c", code, str(run.folder)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    with run.lock():
        assert "another process is working on" in other()
        with pytest.raises(RunError), Run.open(run.folder).lock():
            pass
    assert other() == ""
    with run.lock():
        pass


def test_a_model_argument_means_a_folder_of_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run.create(tmp_path / "runs" / "mine", Recipe())
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        model_folder(run.folder)
    newest = checkpoint(run, "pretrain", 8)
    checkpoint(run, "pretrain", 2)
    assert model_folder(run.folder) == newest and model_folder(newest) == newest
    with pytest.raises(CheckpointError, match=r"there is no such folder.*did you mean runs/mine\?"):
        model_folder("runs/mime")
    with pytest.raises(CheckpointError, match="runs here: runs/mine"):
        model_folder("zzz")
    with pytest.raises(CheckpointError, match=r"is neither a run folder .* nor a model folder"):
        model_folder(tmp_path)


def test_stages_are_in_the_order_in_which_they_are_made():
    assert STAGES == ("tokenizer", "pretrain", "sft", "grpo", "eval")


def test_a_stage_of_ones_own_can_change_until_it_has_begun(tmp_path):
    text = '[stages.first]\nkind = "sft"\nsteps = 3\n[stages.then]\nkind = "grpo"\n'
    (tmp_path / "staged.toml").write_text(text)
    run = Run.create(tmp_path / "run", load_recipe(tmp_path / "staged.toml"))
    run.update("first", {"steps": 3})
    other = {"stages.then.steps": "7", "stages.last.kind": "grpo", "stages.first.checkpoint_every": "2"}
    run.change(load_recipe(tmp_path / "staged.toml", other))
    assert list(Run.open(run.folder).recipe.line)[2:] == ["first", "then", "last", "eval"]
    for fixed in ({"stages.first.steps": "4"}, {"sft.mtp_weight": "0.1"}, {"seed": "3"}):
        with pytest.raises(RunError, match=f"was begun with {next(iter(fixed))}"):
            run.change(load_recipe(tmp_path / "staged.toml", other | fixed))
