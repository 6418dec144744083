"""Writer: tensors into safetensors shards with their index, a piece at a time. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from leanseek.checkpoint.shards import BITS, ENDING, INDEX, LENGTH_BYTES, METADATA, WEIGHTS, Layout
from leanseek.files import write_json

# As other programs have it: large enough that there are few shards, small enough that one is soon sent again.
MAX_SHARD_BYTES = 5_000_000_000


class Sized(Protocol):
    """What takes some bytes of a shard."""

    @property
    def nbytes(self) -> int:
        """How many."""


Part = TypeVar("Part", bound=Sized)


def split(tensors: Iterable[Part], max_shard_bytes: int = MAX_SHARD_BYTES) -> list[list[Part]]:
    """Divide tensors into shards, in their order.

    Args:
        tensors: what is to be written.
        max_shard_bytes: of one shard; a tensor that is larger has one to itself.
    """
    shards: list[list[Part]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.nbytes
    return shards


def shard_names(count: int) -> list[str]:
    """Return the file names of that many shards, as other programs know them."""
    if count == 1:
        return [WEIGHTS]
    return [f"model-{number:05}-of-{count:05}{ENDING}" for number in range(1, count + 1)]


def write_index(folder: Path, shards: Sequence[Sequence[Layout]]) -> None:
    """Write the index that says which shard holds which tensor; one shard alone needs none."""
    if len(shards) == 1:
        return
    places = {
        tensor.name: name for name, shard in zip(shard_names(len(shards)), shards, strict=True) for tensor in shard
    }
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})


class ShardWriter:
    """Writes one shard: its header at once, then each tensor's bytes, in any order and piece by piece.

    Args:
        path: the file; nobody may read it before the writer is closed.
        tensors: what it will hold. The widest types come first, so that each lies where its type can be read from.
    """

    def __init__(self, path: Path, tensors: Iterable[Layout]) -> None:
        ordered = sorted(tensors, key=lambda tensor: (-BITS[tensor.dtype], tensor.name))
        header: dict[str, Any] = {METADATA: {"format": "pt"}}
        offset = 0
        for tensor in ordered:
            offsets = [offset, offset + tensor.nbytes]
            header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
            offset += tensor.nbytes
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % LENGTH_BYTES)
        begin = LENGTH_BYTES + len(text)
        # Where each tensor's next byte goes, and how many are lacking.
        self._places = {tensor.name: begin + header[tensor.name]["data_offsets"][0] for tensor in ordered}
        self._lacking = {tensor.name: tensor.nbytes for tensor in ordered}
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)

    def append(self, name: str, data: Any) -> None:
        """Write the next bytes of a tensor.

        Args:
            name: of the tensor.
            data: anything that gives its bytes as a buffer.
        """
        view = memoryview(data).cast("B")
        assert view.nbytes <= self._lacking[name], name
        self._file.seek(self._places[name])
        self._file.write(view)
        self._places[name] += view.nbytes
        self._lacking[name] -= view.nbytes

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._file:
            if error is None:
                assert not any(self._lacking.values()), "every tensor was written whole"
                self._file.flush()
                os.fsync(self._file.fileno())
