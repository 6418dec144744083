"""Recipes: what extends what, what overrides what, and what is refused with the nearest name."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from leanseek.errors import ConfigError
from leanseek.run import to_toml
from leanseek.sections.tuning import SftSettings
from leanseek.settings import STAGES, Recipe, dotted_keys, load_recipe, parse_recipe, recipe_names


def recipe(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_a_recipe_does_not_say_is_the_default(tmp_path):
    loaded = load_recipe(recipe(tmp_path, "mine", "[grpo]\nsteps = 7\n[grpo.optimiser]\nlr = 0.1\n"))
    assert loaded.name == "mine"
    assert loaded.grpo.steps == 7 and loaded.grpo.optimiser.lr == 0.1
    assert loaded.grpo.optimiser.beta2 == Recipe().grpo.optimiser.beta2 and loaded.sft == Recipe().sft


def test_a_recipe_extends_another_beside_it_or_an_embedded_one(tmp_path):
    recipe(tmp_path, "first", "seed = 3\n[sft]\nsteps = 5\nbatch_sequences = 2\n")
    recipe(tmp_path, "second", 'extends = "first"\n[sft]\nsteps = 6\n')
    third = load_recipe(recipe(tmp_path, "third", 'extends = "second"\nname = "third time"\n'))
    assert (third.name, third.seed, third.sft.steps, third.sft.batch_sequences) == ("third time", 3, 6, 2)
    embedded = recipe_names()[0]
    child = load_recipe(recipe(tmp_path, "child", f'extends = "{embedded}"\nseed = 99\n'))
    assert child.seed == 99 and child.grpo == load_recipe(embedded).grpo


@pytest.mark.parametrize(
    ("overrides", "value"),
    [
        ({"grpo.steps": "40"}, lambda r: r.grpo.steps == 40),
        ({"grpo.optimiser.lr": "1e-3"}, lambda r: r.grpo.optimiser.lr == 1e-3),
        ({"sft.batch-sequences": 3}, lambda r: r.sft.batch_sequences == 3),
        ({"name": "a name"}, lambda r: r.name == "a name"),
        ({"environments": '["largest"]'}, lambda r: r.environments == ("largest",)),
        ({"levels.largest": "[3, 4]"}, lambda r: r.levels == {"largest": (3, 4)}),
        ({"grpo.replay_routing": "false"}, lambda r: r.grpo.replay_routing is False),
        ({"data.sources": "texts"}, lambda r: r.data.sources == ("texts",)),
        ({"data.sources": '["a", "b"]'}, lambda r: r.data.sources == ("a", "b")),
    ],
)
def test_overrides_lie_over_the_file_and_are_read_as_toml(tmp_path, overrides, value):
    assert value(load_recipe(recipe(tmp_path, "mine", "[grpo]\nsteps = 7\n"), overrides))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[grpo]\nstepz = 4\n", r"mine\.toml: grpo\.stepz is not a setting; did you mean grpo\.steps\?"),
        ("[pretrian]\nsteps = 4\n", r"pretrian is not a setting; did you mean pretrain\?"),
        ("seeds = 1\n", r"seeds is not a setting; did you mean seed\?"),
        ("[grpo.optimizer]\nlr = 0.1\n", r"grpo\.optimizer is not a setting; did you mean grpo\.optimiser\?"),
        ("[grpo]\nsteps = 0\n", r"grpo\.steps = 0: .*greater than or equal to 1"),
        ('[grpo]\nsteps = "many"\n', r"grpo\.steps = 'many': .*integer"),
        ('device = "gpu"\n', r"device = 'gpu': .*'cpu' or 'cuda'"),
        ("data = 3\n", r"data = 3: "),
        ("[data]\nsources = 3\n", r"data\.sources = 3: "),
        ("seed = \n", r"mine\.toml: not valid TOML"),
        ('extends = "nothing"\n', r"recipe 'nothing' is not known"),
        ('extends = "mine"\n', r"extend each other in a circle"),
    ],
)
def test_mistakes_are_told_with_file_key_value_and_nearest_name(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe(tmp_path, "mine", text))


def test_all_mistakes_are_told_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"sft\.steps = 0: .*; grpo\.stepz is not a setting"):
        load_recipe(recipe(tmp_path, "mine", "[grpo]\nstepz = 4\n[sft]\nsteps = 0\n"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"grpo.stepz": "4"}, r"--grpo\.stepz is not a setting; did you mean grpo\.steps\?"),
        ({"grpo": "4"}, r"--grpo is not a setting"),
        ({"grpo.steps": "x"}, r"grpo\.steps = 'x'"),
        ({"data.documents": "4"}, r"data = 3"),
    ],
)
def test_mistakes_on_the_command_line_are_told_too(tmp_path, overrides, message):
    text = "data = 3\n" if "data.documents" in overrides else ""
    with pytest.raises(ConfigError, match=message):
        load_recipe(recipe(tmp_path, "mine", text), overrides)


def test_names_and_paths_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no such recipe file"):
        load_recipe(tmp_path / "none.toml")
    name = recipe_names()[0]
    with pytest.raises(ConfigError, match=rf"recipe '{name}s' is not known; did you mean {name}\?"):
        load_recipe(f"{name}s")


def test_settings_cannot_be_changed_by_accident():
    with pytest.raises(ValidationError):
        Recipe().seed = 3


def test_every_setting_has_a_dotted_name():
    keys = list(dotted_keys())
    assert len(keys) == len(set(keys))
    assert {"name", "levels", "data.sources", "grpo.optimiser.lr", "grpo.clip_high", "sft.steps"} <= set(keys)
    assert not {"grpo", "grpo.optimiser"} & set(keys)


def test_values_at_hand_are_checked_and_left_alone():
    values = {"data": {"sources": "texts"}}
    assert parse_recipe(values, "here").data.sources == ("texts",)
    assert values == {"data": {"sources": "texts"}}
    with pytest.raises(ConfigError, match="here: dta is not a setting; did you mean data"):
        parse_recipe({"dta": {}}, "here")


STAGED = """
environments = ["running_total", "largest"]
[sft]
steps = 5
[stages.first]
kind = "sft"
steps = 9
optimiser = { lr = 0.5 }
[stages.sharpen]
kind = "grpo"
environments = ["largest"]
[stages.kept]
kind = "traces"
[stages.second]
kind = "sft"
after = "pretrain"
traces = "kept"
[stages.grpo]
"""


def staged(tmp_path, text=STAGED, **overrides):
    (tmp_path / "staged.toml").write_text(text)
    return load_recipe(tmp_path / "staged.toml", {k.replace("__", "."): v for k, v in overrides.items()})


def test_a_recipe_lists_its_own_stages(tmp_path):
    recipe = staged(tmp_path, stages__first__warmup_fraction="0.5", sft__mtp_weight="0.0")
    kinds = ("tokenizer", "pretrain", "sft", "grpo", "traces", "sft", "grpo", "eval")
    assert tuple(recipe.line.values()) == kinds
    assert list(recipe.line)[2:-1] == ["first", "sharpen", "kept", "second", "grpo"]
    assert [recipe.before(name) for name in recipe.line] == [
        *(None, None, "pretrain", "first", "sharpen", "pretrain", "second", "grpo")
    ]
    first, second = (recipe.settings_of(name, SftSettings) for name in ("first", "second"))
    assert (first.steps, first.warmup_fraction, first.optimiser.lr, first.optimiser.adamw_lr) == (9, 0.5, 0.5, 3e-3)
    assert (second.steps, second.traces, second.mtp_weight) == (5, "kept", 0.0) and first.mtp_weight == 0.0
    assert recipe.environments_of("sharpen") == ("largest",) and len(recipe.environments_of("first")) == 2
    assert parse_recipe(tomllib.loads(to_toml(recipe)), "again") == recipe


def test_the_usual_line_is_what_it_was():
    recipe = Recipe()
    assert tuple(recipe.line) == STAGES and recipe.before("sft") == "pretrain" and recipe.before("grpo") == "sft"
    started = Recipe.model_validate({"grpo": {"start": "x"}})
    assert tuple(started.line) == ("grpo", "eval") and started.before("grpo") is None
    cold = Recipe.model_validate({"grpo": {"start": "x", "cold_start": True}})
    assert tuple(cold.line) == ("sft", "grpo", "eval") and cold.before("grpo") == "sft"


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"stages__kept__kind": "trace"}, r"stages\.kept\.kind = 'trace'"),
        ({"stages__first__stepz": "4"}, r"stages\.first\.stepz is not a setting; did you mean steps"),
        ({"stages__first__steps": "0"}, r"stages\.first\.steps = 0: .*greater than or equal to 1"),
        ({"stages__second__after": "shrpen"}, r"stages\.second\.after = 'shrpen'.*did you mean sharpen"),
        ({"stages__first__after": "second"}, "no model is made there before"),
        ({"stages__first__traces": "kept"}, r"neither a \.jsonl file nor an earlier stage"),
        ({"stages__other__steps": "4"}, "stages.other has no kind; have sft, grpo, traces, distill"),
        ({"stages__grpo__kind": "sft"}, "its kind is sft, so it cannot be called grpo"),
        ({"stages__Eval__kind": "sft"}, "a stage's name is of a-z, 0-9 and _"),
        ({"stages__eval__kind": "sft"}, "and none of accuracy"),
    ],
)
def test_stages_that_cannot_be_made_are_told(tmp_path, changed, complaint):
    with pytest.raises(ConfigError, match=complaint):
        staged(tmp_path, **changed)
