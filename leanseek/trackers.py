"""Trackers: programs that draw a run's metrics elsewhere, fed with the rows of metrics.jsonl; each is an extra."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from leanseek import variables
from leanseek.errors import ConfigError
from leanseek.log import Tracker
from leanseek.sections.account import TrackSettings


class TensorBoard:
    """Event files, which `tensorboard --logdir RUN/tensorboard` shows; one folder for each stage.

    Args:
        folder: of the run.
        settings: of the recipe.
    """

    def __init__(self, folder: Path, settings: TrackSettings) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._make, self._folder = SummaryWriter, folder / "tensorboard"
        self._writers: dict[str, Any] = {}

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Take a row's numbers."""
        if stage not in self._writers:  # what a killed process logged beyond its last checkpoint is taken back
            self._writers[stage] = self._make(str(self._folder / stage), purge_step=step)
        for name, value in values.items():
            self._writers[stage].add_scalar(name, value, step)
        self._writers[stage].flush()

    def close(self) -> None:
        """Write what is still to be written."""
        for writer in self._writers.values():
            writer.close()


class Wandb:
    """Weights & Biases: files in the run folder, which `wandb sync` sends; at once where `online` asks for that.

    Args:
        folder: of the run; going on with it goes on with the same entry.
        settings: of the recipe.
    """

    def __init__(self, folder: Path, settings: TrackSettings) -> None:
        variables.hush_trackers()
        import wandb

        self._run = wandb.init(
            project=settings.project,
            name=folder.name,
            id=hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16],
            dir=str(folder),
            mode="online" if settings.online else "offline",
            resume="allow" if settings.online else None,
            save_code=False,
            settings=wandb.Settings(console="off", silent=True, disable_git=True, x_disable_stats=True),
        )
        self._stages: set[str] = set()

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Take a row's numbers."""
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._run.log({f"{stage}/{name}": value for name, value in values.items()} | {f"{stage}/step": step})

    def close(self) -> None:
        """Write what is still to be written."""
        self._run.finish()


class Trackio:
    """trackio: a local database, which `trackio show` draws; a Space of Hugging Face's where `online` asks for that.

    Args:
        folder: of the run; its name is the entry's.
        settings: of the recipe; `space` says which Space.
    """

    def __init__(self, folder: Path, settings: TrackSettings) -> None:
        variables.hush_trackers()
        import trackio

        space: dict[str, Any] = {"space_id": settings.space} if settings.online else {}
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for results
            self._finish: Callable[[], Any] = (
                trackio.finish
            )  # the module forgets the run then, and does not end it twice
            self._run: Any = trackio.init(
                project=settings.project,
                name=folder.name,
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
                **space,
            )

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Take a row's numbers."""
        self._run.log({f"{stage}/{name}": value for name, value in values.items()} | {f"{stage}/step": step})

    def close(self) -> None:
        """Write what is still to be written."""
        with contextlib.redirect_stdout(sys.stderr):
            self._finish()


# Name -> what it is made by, and the package that it needs, which the extra of the same name brings.
TRACKERS: dict[str, Callable[[Path, TrackSettings], Tracker]] = {
    "tensorboard": TensorBoard,
    "trackio": Trackio,
    "wandb": Wandb,
}


def check_trackers(settings: TrackSettings) -> None:
    """Refuse trackers that are not installed, or that lack something, before any work.

    Raises:
        ConfigError: one is.
    """
    for name in settings.to:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"track.to has {name!r}, whose package is not installed: pip install 'leanseek[{name}]'")
    if settings.online and "trackio" in settings.to and settings.space is None:
        raise ConfigError("track.online with trackio needs track.space, the Space that is written to, as user/name")


def open_trackers(folder: Path, settings: TrackSettings) -> dict[str, Tracker]:
    """Return a recipe's trackers at work, by name.

    Raises:
        ConfigError: one is not installed.
    """
    check_trackers(settings)
    return {name: TRACKERS[name](folder, settings) for name in settings.to}
