"""Variables: every LEANSEEK_* environment variable, and torchrun's. Nothing else reads the environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from leanseek.errors import ConfigError, nearest


@dataclass(frozen=True)
class Variable:
    """One environment variable.

    Args:
        name: with its LEANSEEK_ prefix.
        accepts: what a value may be, in words.
        default: what holds without it, in words.
        description: what it is for.
    """

    name: str
    accepts: str
    default: str
    description: str


# What LEANSEEK_KERNELS may be.
KERNELS = ("auto", "reference", "native", "generic", "avx2", "avx512", "neon")

VARIABLES = (
    Variable(
        "LEANSEEK_KERNELS",
        ", ".join(KERNELS),
        "auto",
        "reference: every operator runs its plain torch form; native: a compiled kernel that is not to be had is an "
        "error; an instruction set: its kernels, not the best ones",
    ),
    Variable(
        "LEANSEEK_SANDBOX",
        "bubblewrap or none",
        "bubblewrap",
        "none: code that a model writes runs as yourself, with bounds on time and memory only",
    ),
    Variable(
        "LEANSEEK_TEACHER_KEY",
        "text",
        "none is sent",
        "key of the server that teaches (`leanseek distill --teacher URL`) or judges; it is never written down",
    ),
    Variable(
        "LEANSEEK_THREADS",
        "a whole number from 1",
        "what the recipe says",
        "CPU threads of every command; `--threads` on the command line goes before it",
    ),
    Variable(
        "LEANSEEK_TRACEBACK",
        "0 or 1",
        "0",
        "1: a failure shows where in the code it arose, not its sentence alone",
    ),
)


def draw_without_screen() -> None:
    """Let MuJoCo draw off screen where Linux has no display and MUJOCO_GL does not say how; before it is imported."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("MUJOCO_GL", "egl")


def threads(environment: Mapping[str, str] | None = None) -> int | None:
    """Return LEANSEEK_THREADS, or None where it is not set.

    Raises:
        ConfigError: it is not a whole number from 1.
    """
    text = _read("LEANSEEK_THREADS", environment)
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"LEANSEEK_THREADS = {text!r}: a whole number from 1 is needed")
    return int(text)


def kernels(environment: Mapping[str, str] | None = None) -> str:
    """Return LEANSEEK_KERNELS, one of `KERNELS`.

    Raises:
        ConfigError: it is none of them.
    """
    text = _read("LEANSEEK_KERNELS", environment) or "auto"
    if text not in KERNELS:
        raise ConfigError(
            f"LEANSEEK_KERNELS = {text!r} is not known{nearest(text, KERNELS)}; accepted: {', '.join(KERNELS)}"
        )
    return text


def sandbox(environment: Mapping[str, str] | None = None) -> str:
    """Return LEANSEEK_SANDBOX: "bubblewrap" or "none".

    Raises:
        ConfigError: it is neither.
    """
    text = _read("LEANSEEK_SANDBOX", environment) or "bubblewrap"
    if text not in ("bubblewrap", "none"):
        raise ConfigError(f"LEANSEEK_SANDBOX = {text!r}: bubblewrap or none is needed")
    return text


def teacher_key(environment: Mapping[str, str] | None = None) -> str:
    """Return LEANSEEK_TEACHER_KEY, or "" where it is not set."""
    return _read("LEANSEEK_TEACHER_KEY", environment) or ""


def traceback(environment: Mapping[str, str] | None = None) -> bool:
    """Return whether LEANSEEK_TRACEBACK asks for tracebacks.

    Raises:
        ConfigError: it is neither 0 nor 1.
    """
    text = _read("LEANSEEK_TRACEBACK", environment) or "0"
    if text not in ("0", "1"):
        raise ConfigError(f"LEANSEEK_TRACEBACK = {text!r}: 0 or 1 is needed")
    return text == "1"


def config_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Return where a person's settings are kept: $XDG_CONFIG_HOME if it is absolute, else .config in the home folder.

    Source: the XDG base directory specification, which has relative paths ignored.
    """
    given = Path(_read("XDG_CONFIG_HOME", environment) or "")
    return given if given.is_absolute() else Path.home() / ".config"


def cache_folder(environment: Mapping[str, str] | None = None) -> Path:
    """Return where what can be made again is kept: $XDG_CACHE_HOME if it is absolute, else .cache at home."""
    given = Path(_read("XDG_CACHE_HOME", environment) or "")
    return given if given.is_absolute() else Path.home() / ".cache"


def torchrun(name: str, otherwise: int, environment: Mapping[str, str] | None = None) -> int:
    """Return a number that torchrun tells the processes that it starts, or `otherwise` without it.

    Args:
        name: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE or TORCHELASTIC_RESTART_COUNT.
        otherwise: of a process that started alone.
        environment: None: this process's.
    Raises:
        ConfigError: it is not a whole number.
    """
    text = _read(name, environment) or str(otherwise)
    if not text.isdecimal():
        raise ConfigError(f"{name} = {text!r}: a whole number is needed, as torchrun sets it")
    return int(text)


def check(environment: Mapping[str, str] | None = None) -> None:
    """Refuse a LEANSEEK_* variable that does not exist: most likely it is misspelt.

    Raises:
        ConfigError: there is one.
    """
    known = [variable.name for variable in VARIABLES]
    for name in os.environ if environment is None else environment:
        if name.startswith("LEANSEEK_") and name not in known:
            raise ConfigError(f"the variable {name} is not known{nearest(name, known)}; have {', '.join(known)}")


def _read(name: str, environment: Mapping[str, str] | None) -> str | None:
    return (os.environ if environment is None else environment).get(name) or None


def hush_ray() -> None:
    """Have Ray report nothing of its use to its makers, unless the user has set that variable of Ray's."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def hush_trackers() -> None:
    """Have trackers report nothing of their use to their makers, unless the user has set those variables of theirs."""
    for name, value in (("WANDB_ERROR_REPORTING", "false"), ("HF_HUB_DISABLE_TELEMETRY", "1")):
        os.environ.setdefault(name, value)
