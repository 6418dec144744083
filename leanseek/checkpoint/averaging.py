"""Averaging: one model folder whose weights are the mean of several of the same shape, a few MB at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from leanseek.checkpoint.convert import read_config, write_beside
from leanseek.checkpoint.quantised import PLAIN, bytes_of, pieces
from leanseek.checkpoint.shards import StoredTensor, read_shards, shown, stored_tensors
from leanseek.checkpoint.work import free_target
from leanseek.checkpoint.writer import ShardWriter, shard_names, split, write_index
from leanseek.errors import CheckpointError
from leanseek.files import new_folder, write_json


def average_folders(
    folders: Sequence[str | Path], out: str | Path, progress: Callable[[float], None] = lambda share: None
) -> None:
    """Write a folder with the even mean of some models' weights, router biases too; all else is the last one's.

    Args:
        folders: of models of one shape and one type of weights, bf16 or fp32.
        out: where to; empty, or not there yet.
        progress: is told the share that is done, from 0 to 1.
    Raises:
        CheckpointError: one cannot be read, or they are not alike, or `out` has something in it; nothing is
            written then.
        UsageError: `out` is the last of them.
    Source: Izmailov et al. 2018 (arXiv 1803.05407); Sanyal et al. 2023 (arXiv 2306.03241) for the latest checkpoints.
    """
    paths = [Path(folder) for folder in folders]
    target = free_target(paths[-1], Path(out))
    config = read_config(paths[-1])
    models = []
    for path in paths:
        _check_alike(path, paths[-1])
        models.append(stored_tensors(read_shards(path)))
    last = models[-1]
    for path, tensors in zip(paths, models, strict=True):
        for name in tensors.keys() ^ last.keys():
            raise CheckpointError(
                f"{path} and {paths[-1]} do not both have {shown(name)}: only like models have a mean"
            )
        for name, stored in tensors.items():
            _check_tensor(stored, last[name])
    total, done = sum(stored.nbytes for stored in last.values()), 0
    shards = split(last.values())
    try:
        with new_folder(target) as folder:
            for name, shard in zip(shard_names(len(shards)), shards, strict=True):
                with ShardWriter(folder / name, shard) as writer:
                    for stored in shard:
                        for parts in zip(*(pieces(tensors[stored.name]) for tensors in models), strict=True):
                            rows = parts[-1][1]
                            mean = torch.stack([part.double() for _, part in parts]).mean(0)
                            writer.append(stored.name, bytes_of(mean.to(rows.dtype)))
                            done += rows.nbytes
                            progress(done / total)
            write_index(folder, shards)
            write_beside(paths[-1], folder)
            write_json(folder / "config.json", config)
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written ({error}); nothing was left there") from None


def _check_alike(path: Path, last: Path) -> None:
    """Refuse a folder whose config.json is another model's."""
    config, other = read_config(path), read_config(last)
    if "quantization_config" in config:
        raise CheckpointError(
            f"{path} has FP8 weights, whose mean is none: first leanseek convert {path} OUT --to bf16"
        )
    for key in config.keys() | other.keys():
        if config.get(key) != other.get(key):
            raise CheckpointError(
                f"{path} and {last} are not alike: {key} is {config.get(key)!r} and {other.get(key)!r}; "
                "only models of one shape have a mean"
            )


def _check_tensor(stored: StoredTensor, other: StoredTensor) -> None:
    if (stored.dtype, stored.shape) != (other.dtype, other.shape) or stored.dtype not in PLAIN:
        raise CheckpointError(
            f"{stored.path}: {shown(stored.name)} is {stored.dtype} {list(stored.shape)}, in {other.path} "
            f"{other.dtype} {list(other.shape)}; both must be the same, and one of {', '.join(PLAIN)}"
        )
