"""WorkFolder: a model folder in the making, beside its place; a later call keeps the shards that are finished."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanseek.checkpoint.shards import Layout, read_shard
from leanseek.checkpoint.writer import ShardWriter, shard_names, write_index
from leanseek.errors import CheckpointError, UsageError
from leanseek.files import sync_folder, write_json
from leanseek.units import format_bytes

# Called with bytes of the source that are done with, and whether an earlier call did that.
OnProgress = Callable[[int, bool], None]


def free_target(source: Path, out: Path) -> Path:
    """Return the folder that a conversion fills, links followed: the folder that is there is what gets filled.

    Raises:
        UsageError: `out` is `source`.
        CheckpointError: `out` has something in it.
    """
    target = out.resolve()
    if target == source.resolve():
        raise UsageError(f"{out} is the folder to be converted; give another for the result")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{out} is not empty; give a folder that is not there yet, or delete it first")
    return target


@dataclass(frozen=True)
class Piece:
    """One file of weights that is to be made.

    Args:
        outputs: the tensors in it.
        read_bytes: what is read for them.
        write: writes them, and reports what it has read.
    """

    outputs: list[Layout]
    read_bytes: int
    write: Callable[[ShardWriter], None]


class WorkFolder:
    """A hidden folder beside `target`, which takes that name when it is whole.

    Args:
        target: the folder that is to be; empty, or not there yet.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path = target.with_name(f".{target.name}.convert")
        self.folder = self.path / "folder"
        self._plan, self._finished = self.path / "plan.json", self.path / "finished.json"

    def make(
        self,
        source: Path,
        pieces: Sequence[Piece],
        plan: Callable[[], Mapping[str, Any]],
        finish: Callable[[Path], None],
        on_progress: OnProgress,
    ) -> None:
        """Fill the folder, or go on with what an earlier call began; its name is there at the end, and not before.

        Args:
            source: the folder that it is made of.
            pieces: its files of weights.
            plan: what work that is gone on with must have in common with this, JSON values; asked again at the end.
            finish: writes what stands beside the weights.
            on_progress: is told what an earlier call did.
        Raises:
            CheckpointError: `source` changed meanwhile, the disk is full, or another process is at the same work. What
                was finished is kept.
        """
        begun = plan()
        try:
            with self.lock():
                self.begin(begun)
                named = dict(zip(shard_names(len(pieces)), pieces, strict=True))
                kept = {name for name, one in named.items() if self.has(name, one.outputs)}
                self._check_space([one for name, one in named.items() if name not in kept])
                for name, one in named.items():
                    if name in kept:
                        on_progress(one.read_bytes, True)
                        continue
                    with self.shard(name) as path, ShardWriter(path, one.outputs) as writer:
                        one.write(writer)
                if plan() != begun:
                    raise CheckpointError(f"{source} was changed meanwhile; run the same command again")
                finish(self.folder)
                write_index(self.folder, [one.outputs for one in pieces])
                self.complete()
        except OSError as error:
            raise CheckpointError(
                f"{self.target} cannot be written ({error}); what is finished is kept: put that right and run it again"
            ) from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder, so that two processes never fill the same one.

        Raises:
            CheckpointError: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise CheckpointError(f"another process is converting to {self.target}; wait for it") from None
            yield

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Make the folder, or keep it as it is if it was begun with the same plan (JSON values)."""
        if _read_json(self._plan) != plan:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._finished.unlink(missing_ok=True)
            write_json(self._plan, plan)
        self.folder.mkdir(exist_ok=True)

    def has(self, name: str, tensors: Iterable[Layout]) -> bool:
        """Whether a shard of these tensors is there as it was when it was finished, byte for byte."""
        path = self.folder / name
        digest = self._digests().get(name)
        if digest is None or not path.is_file():
            return False
        try:
            there = {(tensor.name, tensor.dtype, tensor.shape) for tensor in read_shard(path).tensors.values()}
        except CheckpointError:
            return False
        return there == {(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors} and _digest(path) == digest

    @contextmanager
    def shard(self, name: str) -> Iterator[Path]:
        """Give the path to write a shard to; it counts as finished when the block ends without an error."""
        part = self.path / f"{name}.part"
        try:
            yield part
            os.replace(part, self.folder / name)
        finally:
            part.unlink(missing_ok=True)
        sync_folder(self.folder)
        write_json(self._finished, {**self._digests(), name: _digest(self.folder / name)})

    def complete(self) -> None:
        """Give the folder its name, and delete what only the work needed."""
        sync_folder(self.folder)
        os.replace(self.folder, self.target)
        sync_folder(self.target.parent)
        shutil.rmtree(self.path, ignore_errors=True)

    def _check_space(self, lacking: Sequence[Piece]) -> None:
        needed = sum(output.nbytes for one in lacking for output in one.outputs)
        if (free := shutil.disk_usage(self.path).free) < needed:
            raise CheckpointError(
                f"{self.target} needs {format_bytes(needed)} more, and {format_bytes(free)} are free there; "
                "free some space, or `leanseek convert` into a folder on another disk"
            )

    def _digests(self) -> dict[str, str]:
        found = _read_json(self._finished)
        return found if isinstance(found, dict) else {}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # none yet, or written by something else: begun anew


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
