"""Recipes: what extends what, what overrides what, and what is refused with the nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from leanseek.errors import ConfigError
from leanseek.settings import Recipe, dotted_keys, load_recipe, parse_recipe, recipe_names


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
