"""leanseek models, envs, recipes: what there is."""

from __future__ import annotations

import json as json_format
import random
from collections.abc import Sequence
from importlib import resources
from typing import Any

from leanseek.cli.columns import columns
from leanseek.cli.overrides import default_of
from leanseek.envs.environment import demonstrate, environments, load_environment
from leanseek.envs.validate import validate as failures_of
from leanseek.errors import TaskError
from leanseek.messages import Message
from leanseek.model.config import load_preset, preset_names
from leanseek.model.count import cache_bytes_per_token, parameters
from leanseek.run import to_toml
from leanseek.settings import Recipe, dotted_keys, load_recipe, recipe_names
from leanseek.units import format_bytes, format_count


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


def envs(*, validate: str | None = None, show: str | None = None, json: bool = False) -> None:
    """List the tasks that come with leanseek; or try one out, or show one's problems.

    Example: leanseek envs --validate countdown

    Args:
        validate: Name of a task, or the dotted name of a module with one: say whether it keeps what tasks promise.
        show: Name of a task: print a problem of each level with its worked solution.
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
    if show is not None:
        _show(show)
        return
    tasks = [load_environment(name) for name in environments()]
    if json:
        print(
            json_format.dumps(
                [{"name": t.name, "levels": t.levels, "description": t.description} for t in tasks], indent=2
            )
        )
        return
    rows = [(task.name, ", ".join(map(str, task.levels)), task.description) for task in tasks]
    print(columns([("task", "levels", "what it asks"), *rows]))


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


def _dialogue(messages: Sequence[Message]) -> str:
    """Return a conversation as lines: what was said, thought, called and answered."""
    lines = []
    for message in messages:
        if message.role != "assistant":
            lines.append(f"[{message.role}] {message.content}")
            continue
        lines += [f"<think>{message.reasoning_content}</think>"] if message.reasoning_content else []
        lines += [message.content] if message.content else []
        lines += [f"-> {call.name} {call.arguments}" for call in message.tool_calls]
    return "\n".join(lines)


def _show(name: str) -> None:
    task = load_environment(name)
    rng = random.Random(0)
    for level in task.levels:
        problem = next(task.problems("train", 0, [level]))
        if task.multi_turn:
            print(f"level {level}\n\n{_dialogue(demonstrate(task, problem, rng)[0])}\n")
            continue
        solution = task.solution(problem, rng)
        print(
            f"level {level}\n\n{problem.prompt}\n\n<think>\n{solution.reasoning_content}\n</think>{solution.content}\n"
        )
