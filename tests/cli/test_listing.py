from __future__ import annotations

import json
import tomllib

import pytest

from leanseek.cli.app import main
from leanseek.cli.listing import description_of
from leanseek.envs.environment import environments, load_environment
from leanseek.envs.sandbox import usable
from leanseek.settings import dotted_keys, load_recipe, parse_recipe, recipe_names


def shown(capsys, *tokens: str) -> str:
    assert main(list(tokens)) == 0
    return capsys.readouterr().out


def test_models_are_counted(capsys):
    found = {one["name"]: one for one in json.loads(shown(capsys, "models", "--json"))}
    assert found["deepseek-v3"]["parameters"] == 671_026_404_352
    assert found["deepseek-v3"]["cache_bytes_per_token"] == 61 * 576 * 2
    table = shown(capsys, "models")
    assert table.splitlines()[0].startswith("model") and "671B" in table and "8 of 256" in table


def test_tasks_are_listed_and_shown(capsys):
    table = shown(capsys, "envs")
    assert all(f"{name}: " in table for name in environments())
    assert table.count("reward 1") >= len(environments(adapters=False)) - 2  # two need a sandbox
    assert "mathematics:... takes a file of problems" in table
    assert {one["name"] for one in json.loads(shown(capsys, "envs", "--json"))} == set(environments())
    page = shown(capsys, "envs", "--show", "countdown")
    assert shown(capsys, "envs", "countdown") == page
    loop = shown(capsys, "envs", "tool_use") if not usable() else "[call of calculator] [tool] reward 1"
    assert "[call of calculator]" in loop and "[tool] " in loop and "reward 1" in loop
    assert page.count("<think>") == len(load_environment("countdown").levels) and "make " in page


def test_a_task_is_tried_out(capsys, tmp_path, monkeypatch):
    assert "right answers score 1" in shown(capsys, "envs", "--validate", "largest")
    (tmp_path / "my_tasks").mkdir()
    (tmp_path / "my_tasks" / "careless.py").write_text(
        "from leanseek.envs import largest\n"
        "class Careless(largest.Largest):\n"
        "    def audit(self, problem, reasoning):\n"
        "        return True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["envs", "--validate", "my_tasks.careless"]) == 1
    printed = capsys.readouterr()
    assert "the audit lets" in printed.out and printed.err.count("\n") == 1


def test_recipes_are_listed_with_their_purpose(capsys):
    found = {one["name"]: one for one in json.loads(shown(capsys, "recipes", "--json"))}
    assert set(found) == set(recipe_names()) and all(one["purpose"] for one in found.values())
    assert all(name in shown(capsys, "recipes") for name in found)


@pytest.mark.parametrize("name", recipe_names())
def test_a_shown_recipe_is_a_recipe_with_the_same_settings(name: str, capsys):
    values = tomllib.loads(shown(capsys, "recipes", "--show", name))
    assert parse_recipe(values, "shown") == load_recipe(name)


def test_every_setting_is_described(capsys):
    table = shown(capsys, "recipes", "--settings")
    for key in dotted_keys():
        assert f"--{key} " in table
        assert description_of(key), key
