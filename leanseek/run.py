"""Run: a run folder: its recipe, its summary, its checkpoints, and who may write in it."""

from __future__ import annotations

import fcntl
import json
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from leanseek.errors import CheckpointError, RunError, nearest
from leanseek.files import write_atomic, write_json
from leanseek.settings import KINDS, STAGES, Recipe, StageSettings, dotted_keys, parse_recipe

__all__ = ["STAGES", "Run", "flat", "model_folder", "stages_of", "to_toml"]

# Everything that a run writes into its folder, apart from temporary files.
CONTENTS = (
    "recipe.toml",
    "summary.json",
    "metrics.jsonl",
    "ledger.jsonl",
    "samples.jsonl",
    "watched.jsonl",
    "report.html",
    "MODEL_CARD.md",
    "checkpoints",
    "tokenizer",
    "corpus",
    "traces",
    "reference",
    "tensorboard",
    "wandb",
)
# Settings of the stages of a kind.
SECTIONS = (*STAGES, *KINDS)
# Settings that a run which has begun may change: device and threads change roundings alone, the others how often
# something is written or looked at (which decides when SFT may end, if `sft.enough` is set).
FREE = (
    *("device", "threads", "checkpoint_every", "keep_checkpoints", "keep_best", "write_behind"),
    "validate_every",
)


def stages_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the names of the stages that a recipe's run is made of, in order."""
    return tuple(recipe.line)


class Run:
    """A run folder. Make one with `Run.create` or `Run.open`.

    Args:
        folder: where it is.
        recipe: the resolved settings, as `recipe.toml` in the folder has them.
    """

    def __init__(self, folder: str | Path, recipe: Recipe) -> None:
        self.folder = Path(folder)
        self.recipe = recipe

    @classmethod
    def create(cls, folder: str | Path, recipe: Recipe) -> Run:
        """Make a run folder and write the resolved recipe into it.

        Raises:
            RunError: the folder is a run already, or is a file, or has something else in it.
        """
        folder = Path(folder)
        if cls.is_run(folder):
            raise RunError(f"{folder} is a run already; go on with it by --resume, or start afresh with --fresh")
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file; a run needs a folder")
        if folder.is_dir() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise RunError(f"{folder} is neither empty nor a run; give another folder with --run")
        run = cls(folder, recipe)
        run._write_recipe(recipe)
        return run

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Open a run folder that exists.

        Raises:
            RunError: it is not a run folder, or its recipe cannot be read.
        """
        folder = Path(folder)
        if not cls.is_run(folder):
            near = [str(child.parent) for child in folder.parent.glob("*/recipe.toml")]
            raise RunError(f"{folder} is not a run folder (it has no recipe.toml){nearest(str(folder), near)}")
        path = folder / "recipe.toml"
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise RunError(f"{path}: not valid TOML ({error}); start afresh with --fresh") from None
        return cls(folder, parse_recipe(values, str(path)))

    @staticmethod
    def is_run(folder: str | Path) -> bool:
        """Whether a folder is a run's."""
        return (Path(folder) / "recipe.toml").is_file()

    @property
    def metrics_path(self) -> Path:
        """One JSON line per logged step; `log.RunLog` writes it."""
        return self.folder / "metrics.jsonl"

    @property
    def ledger_path(self) -> Path:
        """One JSON line per charged piece of work."""
        return self.folder / "ledger.jsonl"

    @property
    def samples_path(self) -> Path:
        """One JSON line per sampled reply that is worth reading."""
        return self.folder / "samples.jsonl"

    @property
    def films_folder(self) -> Path:
        """Of each task that has pictures an episode, early and late: `<task>-<model>.webp`."""
        return self.folder / "films"

    @property
    def watched_path(self) -> Path:
        """One JSON line per reply to the same few problems, at every look that a stage takes at how far it is."""
        return self.folder / "watched.jsonl"

    @property
    def report_path(self) -> Path:
        """The self-contained page."""
        return self.folder / "report.html"

    @property
    def card_path(self) -> Path:
        """The model card."""
        return self.folder / "MODEL_CARD.md"

    @property
    def tokenizer_folder(self) -> Path:
        """The tokenizer that every stage uses."""
        return self.folder / "tokenizer"

    @property
    def corpus_folder(self) -> Path:
        """The corpus as token ids."""
        return self.folder / "corpus"

    def traces_path(self, stage: str) -> Path:
        """The replies that a stage of kind traces kept, one JSON line each."""
        return self.folder / "traces" / f"{stage}.jsonl"

    @property
    def summary(self) -> dict[str, Any]:
        """What `summary.json` holds now; {} before the first `update`.

        Raises:
            RunError: the file is not a JSON object.
        """
        path = self.folder / "summary.json"
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise RunError(f"{path}: not valid JSON ({error}); start afresh with --fresh") from None
        if not isinstance(values, dict):
            raise RunError(f"{path}: a JSON object is needed, got {type(values).__name__}; start afresh with --fresh")
        return values

    def update(self, stage: str, values: Mapping[str, Any]) -> None:
        """Lay values over a stage's part of `summary.json`, atomically; other parts stay as they are."""
        summary = self.summary
        summary[stage] = {**summary.get(stage, {}), **values}
        write_json(self.folder / "summary.json", summary)

    def finish(self, stage: str, values: Mapping[str, Any] | None = None) -> None:
        """Record that a stage is done, with its figures."""
        self.update(stage, {**(values or {}), "done": True})

    def stage_done(self, stage: str) -> bool:
        """Whether `finish` was called for a stage."""
        return self.summary.get(stage, {}).get("done") is True

    def stage_begun(self, stage: str) -> bool:
        """Whether a stage has left anything: a part of the summary or a checkpoint."""
        return stage in self.summary or bool(self.checkpoints(stage))

    def checkpoint(self, stage: str, step: int) -> Path:
        """Return the path of a stage's checkpoint after `step` steps; nothing is made."""
        return self.folder / "checkpoints" / f"{stage}-{step}"

    def checkpoints(self, stage: str | None = None) -> list[Path]:
        """Return the complete checkpoints of a stage (None: of all), oldest first.

        A folder without a config.json is not complete: a checkpoint gets its name only when it is whole.
        """
        found, line = [], (*STAGES, *stages_of(self.recipe))
        order = {name: place for place, name in enumerate(line)}
        for path in (self.folder / "checkpoints").glob("*-*"):
            name, _, step = path.name.rpartition("-")
            wanted = name == stage if stage is not None else name in order
            if wanted and step.isdecimal() and (path / "config.json").is_file():
                found.append((order.get(name, -1), int(step), path))
        return [path for _, _, path in sorted(found)]

    def latest(self, stage: str | None = None) -> Path | None:
        """Return the newest complete checkpoint of a stage (None: of the last stage that has one), or None."""
        found = self.checkpoints(stage)
        return found[-1] if found else None

    def prune(self, stage: str, keep: int, best: int | None = None) -> None:
        """Delete a stage's checkpoints but the newest `keep` and that of step `best`, and what killed writes left."""
        found = self.checkpoints(stage)
        spared = {*found[max(len(found) - keep, 0) :], best is not None and self.checkpoint(stage, best)}
        for path in [*found, *(self.folder / "checkpoints").glob(f".{stage}-*")]:
            if path not in spared:
                shutil.rmtree(path)

    def change(self, recipe: Recipe) -> None:
        """Go on with other settings, where the stages that have begun do not depend on what changed.

        Raises:
            RunError: a changed setting has already shaped what is in the folder.
        """
        old, new = flat(self.recipe), flat(recipe)
        line = {**recipe.line, **self.recipe.line}
        begun = {stage for stage in line if self.stage_begun(stage)}
        kinds = begun | {line[stage] for stage in begun}
        changed = [key for key in {**old, **new} if new.get(key) != old.get(key)]
        refused = [key for key in changed if _is_fixed(key, kinds)]
        if refused:
            shown = ", ".join(
                f"{key} = {_toml_value(old.get(key))} (now {_toml_value(new.get(key))})" for key in refused
            )
            raise RunError(
                f"{self.folder} was begun with {shown}; go on without the change, take another folder with --run, "
                "or start afresh with --fresh"
            )
        self.recipe = recipe
        self._write_recipe(recipe)

    def clear(self) -> None:
        """Delete all that a run writes into its folder; anything else in it stays."""
        for name in CONTENTS:
            path = self.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder, so that two processes never write the same run.

        Raises:
            RunError: another process holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(
                    f"another process is working on {self.folder}; wait for it, or take another folder with --run"
                ) from None
            yield

    def _write_recipe(self, recipe: Recipe) -> None:
        write_atomic(self.folder / "recipe.toml", to_toml(recipe))


def model_folder(path: str | Path) -> Path:
    """Return the folder of the weights that a MODEL argument means: a run's latest checkpoint, or the folder itself.

    Raises:
        CheckpointError: there is no such folder, or it holds no model (yet).
    """
    path = Path(path)
    if (path / "config.json").is_file():
        return path
    if Run.is_run(path):
        latest = Run.open(path).latest()
        if latest is None:
            raise CheckpointError(f"{path} has no checkpoint yet; make one with: leanseek make --run {path}")
        return latest
    if not path.exists():
        runs = [str(child.parent) for child in Path("runs").glob("*/recipe.toml")]
        hint = nearest(str(path), runs) or (f"; runs here: {', '.join(sorted(runs))}" if runs else "")
        raise CheckpointError(f"{path}: there is no such folder; a run folder or a model folder is needed{hint}")
    raise CheckpointError(f"{path} is neither a run folder (recipe.toml) nor a model folder (config.json)")


def flat(recipe: Recipe) -> dict[str, Any]:
    """Return every setting under its dotted name."""
    values: dict[str, Any] = {}
    for key in dotted_keys():
        node: Any = recipe
        for part in key.split("."):
            node = getattr(node, part)
        values[key] = node
    for name, stage in values.pop("stages").items():
        for key, value in stage:
            values[f"stages.{name}.{key}"] = recipe.before(name) if key == "after" else value
    return values


def to_toml(recipe: Recipe) -> str:
    """Write a recipe as TOML, every setting spelt out; settings that are None are left out (TOML has no null)."""
    lines = ["# Resolved settings of this run, written by leanseek."]
    _write_table(recipe, (), lines)
    return "\n".join(lines) + "\n"


def _write_table(settings: BaseModel, path: tuple[str, ...], lines: list[str]) -> None:
    below = []
    if path:
        lines += ["", f"[{'.'.join(path)}]"]
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            below.append((name, value))
        elif name == "stages":
            below += [(f"stages.{stage}", own) for stage, own in value.items()]
        elif value is not None:
            lines.append(f"{name} = {_toml_value(value)}")
    if isinstance(settings, StageSettings):
        lines += [f"{name} = {_toml_value(value)}" for name, value in settings.own.items()]
    for name, value in below:
        _write_table(value, (*path, name), lines)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_value(str(k))} = {_toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return repr(value) if value is not None else "none"


def _is_fixed(key: str, begun: set[str]) -> bool:
    """Whether a setting has already shaped what the stages that have begun left in the folder."""
    section, _, name = key.partition(".")
    if key == "name" or section in ("cost", "parallel", "track") or (name or section) in FREE:
        return False
    if section == "stages":
        stage, _, name = name.partition(".")
        return name not in FREE and stage in begun
    # Everything outside a stage's own section goes into all of them.
    return section in begun if section in SECTIONS else bool(begun)
