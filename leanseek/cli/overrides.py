"""Overrides: settings of a recipe that stand among a command's own options, such as --grpo.steps 40."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from leanseek import variables
from leanseek.errors import UsageError, nearest
from leanseek.settings import OPEN, Recipe, dotted_keys

# What the commands that take settings have of their own. The first ones take a value.
VALUED = ("--run", "--env", "--teacher", "--method", "--data")
FLAGS = ("--fresh", "--resume", "--dry-run", "--json", "--help", "-h", "--version")
# Settings that are lists: given as a,b or several times.
LISTS = (
    "environments",
    "efforts",
    "data.shards",
    "data.sources",
    "data.weights",
    "grpo.lora_targets",
    "sft.lora_targets",
    "dpo.lora_targets",
    "distill.teachers",
    "track.to",
)


def split_settings(tokens: Sequence[str], section: str | None) -> tuple[list[str], dict[str, Any]]:
    """Take the settings out of a command's arguments.

    Args:
        tokens: the arguments after the command's name.
        section: what --train.X means: the section of this stage; None: nothing.
    Returns:
        The other arguments, and dotted name -> value as `load_recipe` takes it.
    Raises:
        UsageError: an option that is neither the command's nor a setting, or a setting without a value.
    """
    rest: list[str] = []
    found: dict[str, Any] = {}
    waiting = list(tokens)
    while waiting:
        token = waiting.pop(0)
        option, given, value = token.partition("=")
        if not option.startswith("--") or option in FLAGS:
            rest.append(token)
        elif option in VALUED:
            rest += [token] if given else [token, *waiting[:1]]
            waiting = waiting if given else waiting[1:]
        else:
            key = _key(option, section)
            if not given:
                value = _value(option, key, waiting)
            _add(found, key, value)
    if (threads := variables.threads()) is not None:
        found.setdefault("threads", threads)
    return rest, found


def _key(option: str, section: str | None) -> str:
    """Return the setting that an option names."""
    key = option.removeprefix("--").replace("-", "_")
    if section is not None and key.startswith("train."):
        key = f"{section}.{key.removeprefix('train.')}"
    known = [*dotted_keys()]
    if key not in known and not key.startswith(tuple(f"{name}." for name in OPEN)):
        options = [name.removeprefix("--") for name in (*VALUED, *FLAGS) if name.startswith("--")]
        near = nearest(key, [*options, *known]).replace("did you mean ", "did you mean --")
        raise UsageError(
            f"{option} is neither an option nor a setting{near}; all settings: leanseek recipes --settings"
        )
    return key


def _value(option: str, key: str, waiting: list[str]) -> str:
    """Take the value after an option; a yes-or-no setting may do without."""
    if waiting and not waiting[0].startswith("--"):
        return waiting.pop(0)
    if _is_flag(key):
        return "true"
    raise UsageError(f"{option} needs a value, as in {option} {_example(key)}")


def _add(found: dict[str, Any], key: str, value: str) -> None:
    if key.startswith("levels."):
        found[key] = value if value.startswith("[") else f"[{value}]"
    elif key in LISTS and not value.startswith("["):
        found[key] = [*found.get(key, ()), *value.split(",")]
    else:
        found[key] = value


def _is_flag(key: str) -> bool:
    return isinstance(default_of(key), bool)


def _example(key: str) -> str:
    default = default_of(key)
    return "VALUE" if default in (None, (), {}) else str(default)


def default_of(key: str) -> Any:
    """Return a setting's default; None for levels of one environment."""
    node: Any = Recipe()
    for part in key.split("."):
        node = getattr(node, part, None)
    return node
