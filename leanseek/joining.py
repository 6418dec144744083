"""Joining: this process becomes a part of a Ray cluster, once; Ray is an extra."""

from __future__ import annotations

import os
from typing import Any

from leanseek.errors import ConfigError, RunError
from leanseek.variables import hush_ray


def ray_for(what: str) -> Any:
    """Return Ray.

    Args:
        what: needs it, as the user knows it.
    Raises:
        ConfigError: it is not installed.
    """
    try:
        import ray  # noqa: PLC0415 - an extra
        import ray.exceptions  # noqa: PLC0415
    except ImportError:
        raise ConfigError(
            f"{what} needs Ray, which is not installed: pip install 'leanseek[cluster]', on every node"
        ) from None
    return ray


def join_ray(ray: Any, address: str, least_cores: int = 1) -> bool:
    """Join a cluster; return whether this process was in none before, so that it is to part from it later.

    Args:
        ray: from `ray_for`.
        address: of a running cluster, "auto" for the one that this machine is part of, or "local" to start one here.
        least_cores: that one started here takes itself to have.
    Raises:
        RunError: nobody answers there.
    """
    if ray.is_initialized():
        return False
    hush_ray()
    local = {"num_cpus": max(least_cores, os.cpu_count() or 1), "include_dashboard": False}
    try:
        ray.init(
            address=None if address == "local" else address,
            log_to_driver=False,
            **(local if address == "local" else {}),
        )
    except ConnectionError as error:
        raise RunError(f"no Ray cluster answers at {address!r}: {error}") from error
    return True
