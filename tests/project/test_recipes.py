"""Presets, recipes and settings that come with leanseek: they load, and they are described."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from leanseek.envs.environment import environments, load_environment
from leanseek.model.config import ModelConfig
from leanseek.run import STAGES
from leanseek.settings import Recipe, dotted_keys, load_recipe, recipe_names

PACKAGE = Path(__file__).resolve().parents[2] / "leanseek"
# Recipes that learn from a file that the user gives, and need no tasks.
ON_DATA = ("longer", "tuner")
PRESETS = sorted((PACKAGE / "presets").glob("*.json"))


def groups(settings: type[BaseModel] = Recipe) -> set[type[BaseModel]]:
    """Return every settings class that a recipe is made of."""
    below = [f.annotation for f in settings.model_fields.values()]
    kinds = [kind for kind in below if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return {settings}.union(*(groups(kind) for kind in kinds)) if kinds else {settings}


def test_every_setting_is_described():
    for group in groups():
        assert group.__doc__, group
        for name, field in group.model_fields.items():
            kind = field.annotation
            section = isinstance(kind, type) and issubclass(kind, BaseModel)
            assert section or field.description, f"{group.__name__}.{name} has no description"


def test_every_setting_without_a_section_of_its_own_has_a_usable_default():
    assert Recipe.model_validate({}) == Recipe() and len(list(dotted_keys())) > 40
    assert {name for name in Recipe.model_fields if name in STAGES} == set(STAGES)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_config_files_and_are_written_back_as_they_are(path):
    values = json.loads(path.read_text(encoding="utf-8"))
    config = ModelConfig.from_file(path)
    assert {key: config.to_dict()[key] for key in values} == values


def test_the_presets_that_recipes_name_are_there():
    assert {"laptop"} <= {path.stem for path in PRESETS}


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_load_and_name_what_exists(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    config = ModelConfig.from_file(PACKAGE / "presets" / f"{recipe.model}.json")
    tasks = {one.partition(":")[0] for one in recipe.environments}
    assert bool(tasks) == (name not in ON_DATA) and tasks <= set(environments())
    assert all(map(load_environment, recipe.environments))
    assert set(recipe.levels) <= tasks
    for environment, levels in recipe.levels.items():
        assert set(levels) <= set(load_environment(environment).levels)
    assert (recipe.tokenizer.vocab_size or config.vocab_size) <= config.vocab_size
    assert recipe.data.sequence_tokens <= config.max_position_embeddings
    for section in () if name in ON_DATA else (recipe.pretrain, recipe.sft, recipe.grpo):
        assert section.steps is not None or section.minutes is not None, "a stage needs steps or minutes"


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_say_in_their_first_line_what_they_are_for(name):
    first = (PACKAGE / "recipes" / f"{name}.toml").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f"# {name}: ") and len(first) > 20


def test_the_default_tasks_exist():
    assert set(Recipe().environments) <= set(environments())
