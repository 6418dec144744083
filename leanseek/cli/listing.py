"""leanseek models, envs, recipes: what there is."""

from __future__ import annotations

import json as json_format
import random
from importlib import resources
from typing import Any

from leanseek.cli.columns import columns
from leanseek.cli.overrides import default_of
from leanseek.envs.environment import demonstrate, environment_class, environments, load_environment
from leanseek.envs.validate import validate as failures_of
from leanseek.errors import TaskError
from leanseek.model.config import load_preset, preset_names
from leanseek.model.count import cache_bytes_per_token, parameters
from leanseek.run import to_toml
from leanseek.settings import Recipe, dotted_keys, load_recipe, recipe_names
from leanseek.units import format_bytes, format_count

# Of a sample in the list of tasks.
SAMPLE_CHARACTERS = 110


def models(*, json: bool = False) -> None:
    """List the model shapes that come with leanseek, counted from their configs.

    Example: leanseek models

    Args:
        json: Print as JSON.
    """
    found: list[dict[str, Any]] = []
    for name in preset_names():
        config = load_preset(name)
        counted = parameters(config)
        found.append(
            {
                "name": name,
                "parameters": counted.total,
                "active_parameters": counted.active,
                "mtp_parameters": counted.mtp,
                "layers": config.num_hidden_layers,
                "hidden_size": config.hidden_size,
                "experts": config.n_routed_experts,
                "experts_per_token": config.num_experts_per_tok,
                "cache_bytes_per_token": cache_bytes_per_token(config),
                "context_tokens": config.max_position_embeddings,
            }
        )
    if json:
        print(json_format.dumps(found, indent=2))
        return
    head = ("model", "parameters", "active", "MTP", "layers", "width", "experts", "cache a token", "context")
    rows = [
        (
            one["name"],
            *(format_count(one[key]) for key in ("parameters", "active_parameters", "mtp_parameters")),
            str(one["layers"]),
            str(one["hidden_size"]),
            f"{one['experts_per_token']} of {one['experts']}",
            format_bytes(one["cache_bytes_per_token"]),
            format_count(one["context_tokens"]),
        )
        for one in sorted(found, key=lambda one: one["parameters"])
    ]
    print(columns([head, *rows], right=range(1, len(head))))


def envs(name: str | None = None, *, validate: str | None = None, show: str | None = None, json: bool = False) -> None:
    """List the tasks that come with leanseek, each with a problem, its right reply and its reward; or show one.

    Example: leanseek envs countdown

    Args:
        name: Name of a task: show a problem of each level with its worked solution and what that earns.
        validate: Name of a task, or the dotted name of a module with one: say whether it keeps what tasks promise.
        show: The same as a name.
        json: Print the list as JSON.
    """
    if validate is not None:
        failures = failures_of(load_environment(validate))
        for failure in failures:
            print(failure)
        if failures:
            raise TaskError(f"{validate} does not keep what tasks promise; see leanseek/envs/environment.py")
        print(f"{validate}: right answers score 1, wrong and hostile ones 0, no problem is in two splits")
        return
    if (shown := name or show) is not None:
        _show(shown)
        return
    found = [_described(one) for one in environments()]
    if json:
        print(json_format.dumps(found, indent=2))
        return
    for one in found:
        kind = "several replies" if one["multi_turn"] else "one reply"
        levels = ", ".join(map(str, one["levels"])) or "-"
        print(f"{one['name']}: {one['description']} (levels {levels}; {kind})")
        if one["option"]:
            print(f"    {one['name']}:... takes {one['option']}")
        if "sample" in one:
            print(f"    {_short(one['sample']['prompt'])}")
            print(f"    -> {_short(one['sample']['reply'])}   reward {one['sample']['reward']:g}")
        else:
            print(f"    {one['missing']}")
    print("\nleanseek envs NAME shows one of them")


def _described(name: str) -> dict[str, Any]:
    """Return what there is to say of a task, with a sample where it can be drawn here."""
    kind = environment_class(name)
    made: dict[str, Any] = {
        "name": name,
        "levels": list(kind.levels),
        "description": kind.description,
        "multi_turn": kind.multi_turn,
        "option": kind.option,
    }
    try:
        task = load_environment(name)
        problem = next(task.problems("train", 0))
        said, turn = demonstrate(task, problem, random.Random(0))
    except TaskError as error:
        return made | {"missing": str(error)}
    calls = "".join(f"[{c.name} {c.arguments}] " for m in said for c in m.tool_calls)
    sample = {"prompt": problem.prompt, "reply": calls + said[-1].content, "reward": turn.rewards.get("correct", 0.0)}
    return made | {"multi_turn": task.multi_turn, "sample": sample}


def _short(text: str) -> str:
    line = " / ".join(text.split("\n"))
    return line if len(line) <= SAMPLE_CHARACTERS else f"{line[: SAMPLE_CHARACTERS - 3]}..."


def recipes(*, show: str | None = None, settings: bool = False, json: bool = False) -> None:
    """List the recipes that come with leanseek; or show one resolved, or every setting there is.

    Example: leanseek recipes --show laptop > mine.toml

    Args:
        show: Name of a recipe, or path of a TOML file: print it with every setting spelt out.
        settings: Print every setting with its default and what it is.
        json: Print the list as JSON.
    """
    if show is not None:
        print(to_toml(load_recipe(show)), end="")
        return
    if settings:
        rows = [(f"--{key}", _default(key), description_of(key)) for key in dotted_keys()]
        print(columns([("setting", "default", "what it is"), *rows]))
        return
    found: list[dict[str, Any]] = []
    for name in recipe_names():
        recipe = load_recipe(name)
        purpose = _purpose(name)
        found.append({"name": name, "model": recipe.model, "environments": recipe.environments, "purpose": purpose})
    if json:
        print(json_format.dumps(found, indent=2))
        return
    table = [(one["name"], one["model"], ", ".join(one["environments"]), one["purpose"]) for one in found]
    print(columns([("recipe", "model", "tasks", "purpose"), *table]))


def description_of(key: str) -> str:
    """Return what a setting is, by its dotted name."""
    model: Any = Recipe
    *sections, name = key.split(".")
    for section in sections:
        model = model.model_fields[section].annotation
    return model.model_fields[name].description or ""


def _default(key: str) -> str:
    value = default_of(key)
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "-"
    return "-" if value is None or value == {} else str(value)


def _purpose(name: str) -> str:
    """Return the first line of a recipe's opening comment, without the recipe's name."""
    text = (resources.files("leanseek") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    line = text.splitlines()[0] if text else ""
    return line.removeprefix("#").strip().removeprefix(f"{name}:").strip() if line.startswith("#") else ""


def _show(name: str) -> None:
    task = load_environment(name)
    rng = random.Random(0)
    for level in task.levels:
        problem = next(task.problems("train", 0, [level]))
        print(f"level {level}\n\n{problem.prompt}\n")
        episode = task.start(problem)
        for tool in episode.tools:
            print(f"tool {tool.name}: {tool.description}")
        said, turn = demonstrate(task, problem, rng)
        for message in said[len(episode.messages) :]:
            if message.role != "assistant":
                print(f"[{message.role}] {message.content}")
                continue
            print(f"<think>\n{message.reasoning_content}\n</think>{message.content}")
            for call in message.tool_calls:
                print(f"[call of {call.name}] {call.arguments}")
        print(f"\nreward {turn.rewards.get('correct', 0.0):g}\n")
