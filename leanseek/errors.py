"""The exception tree: every failure that a user can cause or meet is one of these.

LeanseekError
├── UsageError          the command line or a call was wrong (exit status 2)
│   └── ConfigError     a recipe, a setting or a model config.json is wrong
├── DataError           a corpus, a shard or a problem cannot be used
├── CheckpointError     a model folder is missing, truncated or does not fit
├── TaskError           an environment is unknown or misbehaves
├── EngineError         a request cannot be served
├── KernelError         a compiled kernel refused its input
├── ServerError         the server cannot start or answer
└── RunError            a run folder is in a state that a stage cannot go on from

A message says what is wrong, the value got, what is accepted, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LeanseekError(Exception):
    """Base of all failures that the command line reports as one sentence."""

    exit_status = 1


class UsageError(LeanseekError):
    """The command line or a call was wrong."""

    exit_status = 2


class ConfigError(UsageError):
    """A recipe, a setting or a model configuration is wrong."""


class DataError(LeanseekError):
    """A corpus, a shard or a problem cannot be used."""


class CheckpointError(LeanseekError):
    """A model folder is missing, truncated or does not fit."""


class TaskError(LeanseekError):
    """An environment is unknown or misbehaves."""


class EngineError(LeanseekError):
    """A request cannot be served."""


class KernelError(LeanseekError):
    """A compiled kernel refused its input."""


class ServerError(LeanseekError):
    """The server cannot start or answer."""


class RunError(LeanseekError):
    """A run folder is in a state that a stage cannot go on from."""


def nearest(name: str, accepted: Iterable[str]) -> str:
    """Return "; did you mean X?" for the accepted name closest to `name`, or "" if none is close."""
    matches = difflib.get_close_matches(name, list(accepted), n=1, cutoff=0.6)
    return f"; did you mean {matches[0]}?" if matches else ""
