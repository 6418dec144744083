"""Parts: a training state that many processes write together, each its rows, and any number of others reads.

A part is a safetensors file; the name of a tensor in it says which rows of how many it has: "key@first/whole".
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from leanseek.checkpoint.quantised import DTYPES, read_rows
from leanseek.checkpoint.shards import StoredTensor, read_shard
from leanseek.errors import CheckpointError
from leanseek.files import write_json

# How long the process that gathers the parts waits for the slowest of the others.
PATIENCE_S, LOOK_S = 3600.0, 0.02


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a tensor; other processes have the others.

    Args:
        tensor: the rows.
        first: the number of the first.
        whole: how many the tensor has.
    """

    tensor: Tensor
    first: int
    whole: int


class Parted:
    """A tensor whose rows lie in several parts; only those that are asked for are read.

    Args:
        key: its name.
        whole: rows in all.
        pieces: (number of the first row, rows), in any order.
    """

    def __init__(self, key: str, whole: int, pieces: list[tuple[int, StoredTensor]]) -> None:
        self.key, self.pieces = key, sorted(pieces, key=lambda piece: piece[0])
        self.shape = (whole, *self.pieces[0][1].shape[1:])

    def __getitem__(self, rows: slice) -> Tensor:
        """Return a run of rows.

        Raises:
            CheckpointError: some are in no part.
        """
        start, stop, _ = rows.indices(self.shape[0])
        out = torch.empty(stop - start, *self.shape[1:], dtype=DTYPES[self.pieces[0][1].dtype])
        done = start
        for first, stored in self.pieces:
            begin, end = max(done, first), min(stop, first + stored.shape[0])
            if begin == done and end > begin:
                out[begin - start : end - start] = read_rows(stored, begin - first, end - first)
                done = end
        if done < stop:
            raise CheckpointError(f"{self.pieces[0][1].path.parent} has no rows {done} to {stop - 1} of {self.key}")
        return out


def write_part(folder: Path, number: int, rows: Mapping[str, Rows]) -> Path:
    """Write one process's part, whole or not at all; return its file.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    path = part_path(folder, number)
    temporary = path.with_suffix(".new")
    named = {f"{key}@{one.first}/{one.whole}": one.tensor.detach().contiguous() for key, one in rows.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(named, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        return path
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be saved ({error}); earlier checkpoints are untouched") from None


def part_path(folder: Path, number: int) -> Path:
    """Return the file of a process's part."""
    return folder / f"part-{number:05}.safetensors"


def announce(staging: Path, number: int, files: Iterable[Path]) -> None:
    """Say that one process has written all of its files, and their hashes."""
    write_json(_announced(staging, number), {path.name: file_digest(path) for path in files})


def gather_parts(staging: Path, numbers: Iterable[int], weights: Path, parts: Path) -> dict[Path, str]:
    """Move what other processes write into a checkpoint, as each has announced it; return its files and their hashes.

    Args:
        staging: where they write.
        numbers: of the processes.
        weights: folder for files of weights.
        parts: folder for parts of the training state.
    Raises:
        CheckpointError: one has not come in an hour.
    """
    found: dict[Path, str] = {}
    for number in numbers:
        path, waited_s = _announced(staging, number), 0.0
        while not path.exists():
            if waited_s > PATIENCE_S:
                raise CheckpointError(
                    f"{path} was not written in {PATIENCE_S / 60:.0f} minutes: is process {number} well?"
                )
            time.sleep(LOOK_S)
            waited_s += LOOK_S
        for name, digest in json.loads(path.read_text(encoding="utf-8")).items():
            into = parts if name == part_path(staging, number).name else weights
            (staging / name).replace(into / name)
            found[into / name] = digest
        path.unlink()
    if staging.exists():
        staging.rmdir()
    return found


def file_digest(path: Path) -> str:
    """Return a file's SHA-256, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _announced(staging: Path, number: int) -> Path:
    return staging / f"written-{number:05}.json"


def read_parts(folder: Path) -> dict[str, Parted]:
    """Return the tensors that the parts in a folder make up, none of them read yet.

    Raises:
        CheckpointError: a part is damaged.
    """
    found: dict[str, tuple[int, list[tuple[int, StoredTensor]]]] = {}
    for path in sorted(folder.glob("part-*.safetensors")):
        for name, stored in read_shard(path).tensors.items():
            key, _, place = name.rpartition("@")
            first, _, whole = place.partition("/")
            found.setdefault(key, (int(whole), []))[1].append((int(first), stored))
    return {key: Parted(key, whole, pieces) for key, (whole, pieces) in found.items()}
