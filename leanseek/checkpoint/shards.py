"""Shards: safetensors files by their headers, every claim of which is checked. No torch, and never pickle."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from leanseek.errors import CheckpointError, nearest

WEIGHTS, INDEX, ENDING = "model.safetensors", "model.safetensors.index.json", ".safetensors"
# As many as the safetensors library reads; 90,000 tensors take about 10 MB.
LARGEST_HEADER_BYTES = 100_000_000
LENGTH_BYTES = 8
METADATA = "__metadata__"
MOST_DIMENSIONS = 64
# Bits of one number, by the name that headers have for its type.
BITS = {
    **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("BF16", "F16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True)
class Layout:
    """What a header says about a tensor's form.

    Args:
        name: of the tensor.
        dtype: a key of `BITS`.
        shape: numbers along each dimension.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many numbers."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """What they take in a file."""
        return self.count * BITS[self.dtype] // 8


@dataclass(frozen=True)
class StoredTensor(Layout):
    """A tensor in a shard whose header was checked.

    Args:
        path: the shard.
        start: where its bytes begin, counted from the file's beginning.
    """

    path: Path
    start: int

    def map(self, first: int = 0, last: int | None = None) -> memoryview:
        """Map some of the tensor's bytes into memory; they leave it when the result is dropped.

        The result can be written to, which changes nothing in the file.

        Args:
            first, last: of the tensor's bytes; None: to the end.
        Raises:
            CheckpointError: the file has become shorter since its header was read, or is gone.
        """
        last = self.nbytes if last is None else last
        assert 0 <= first <= last <= self.nbytes
        if first == last:
            return memoryview(bytearray())
        begin = self.start + first
        aligned = begin - begin % mmap.ALLOCATIONGRANULARITY
        length = self.start + last - aligned
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < aligned + length:
                    raise ValueError("it is shorter than it was")
                mapped = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=aligned)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path}: {shown(self.name)} cannot be read any more ({error})") from None
        return memoryview(mapped)[begin - aligned :]


@dataclass(frozen=True)
class Shard:
    """A safetensors file's header, checked against the file.

    Args:
        path: the file.
        nbytes: its size.
        tensors: by name, in the file's order.
    """

    path: Path
    nbytes: int
    tensors: Mapping[str, StoredTensor]


class MappedShards:
    """Shards that are in memory as long as their tensors are used: each is mapped once, however many it holds.

    A system allows a process some 65,000 mappings, and DeepSeek-V3 has 90,000 tensors.
    """

    def __init__(self) -> None:
        self._files: dict[Path, memoryview] = {}

    def bytes_of(self, stored: StoredTensor) -> memoryview:
        """Return a tensor's bytes, which cannot be written to.

        Raises:
            CheckpointError: the file has become shorter since its header was read, or is gone.
        """
        try:
            if stored.path not in self._files:
                with stored.path.open("rb") as file:
                    self._files[stored.path] = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            found = self._files[stored.path][stored.start : stored.start + stored.nbytes]
            if len(found) != stored.nbytes:
                raise ValueError("it is shorter than it was")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{stored.path}: {shown(stored.name)} cannot be read any more ({error})") from None
        return found


def read_shard(path: str | Path) -> Shard:
    """Read a shard's header and check all that it says; not a byte of a weight is read.

    Raises:
        CheckpointError: no such file, it was cut short, or its header is not that of these bytes: not JSON, a name
            twice, an unknown type, a shape that does not fit its bytes, bytes that overlap, are missing or left over.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; a model folder has its weights there")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if size < LENGTH_BYTES:
                _damaged(path, size, "too short for a header")
            if length > LARGEST_HEADER_BYTES:
                _damaged(path, size, f"a header of {length:,} bytes; at most {LARGEST_HEADER_BYTES:,} are read")
            if length > size - LENGTH_BYTES:
                _damaged(path, size, f"a header of {length:,} bytes, which the file does not have")
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error})") from None
    try:
        tensors = _tensors(path, text, LENGTH_BYTES + length, size)
    except (ValueError, RecursionError) as error:
        _damaged(path, size, str(error)[:300])
    return Shard(path, size, tensors)


def read_shards(folder: str | Path) -> list[Shard]:
    """Read the headers of a folder's shards: those that its index names, or model.safetensors.

    Raises:
        CheckpointError: as `read_shard`, or the index is none, names a file that is missing or outside the folder, or a
            tensor that is not where it says; or two shards hold the same tensor.
    """
    folder = Path(folder)
    index = folder / INDEX
    if not index.is_file():
        if not (folder / WEIGHTS).is_file():
            others = sorted(path.name for path in folder.glob("*") if path.suffix in (".bin", ".pt", ".pth", ENDING))
            hint = f"; it has {', '.join(others[:3])}, which is not read" if others else ""
            raise CheckpointError(f"{folder / WEIGHTS}: there is no such file, and no {INDEX} beside it{hint}")
        return [read_shard(folder / WEIGHTS)]
    places = _weight_map(index)
    shards = [read_shard(folder / name) for name in sorted(set(places.values()))]
    held: dict[str, str] = {}
    for shard in shards:
        for name in shard.tensors:
            if name in held:
                raise CheckpointError(f"{shard.path}: {shown(name)} is in {held[name]} too; get the folder anew")
            held[name] = shard.path.name
    for name, file in places.items():
        if held.get(name) != file:
            where = f"it is in {held[name]}" if name in held else "no shard has it" + nearest(name, held)
            raise CheckpointError(f"{index}: {shown(name)} is not in {file}, as it says ({where}); get the folder anew")
    return shards


def stored_tensors(shards: Iterable[Shard]) -> dict[str, StoredTensor]:
    """Return the tensors of a folder's shards by name."""
    return {name: stored for shard in shards for name, stored in shard.tensors.items()}


def shown(name: str) -> str:
    """Return a tensor's name as a message can show it: names come from files, and may hold anything."""
    text = name if name.isprintable() and name.strip() == name and name else repr(name)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _damaged(path: Path, size: int, reason: str) -> NoReturn:
    raise CheckpointError(
        f"{path}: the file is damaged or was cut short ({size:,} bytes: {reason}); get it anew"
    ) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object, but not of keys that come twice: which of them would count?"""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"its header names {shown(twice)} twice")
    return found


def _tensors(path: Path, text: bytes, begin: int, size: int) -> dict[str, StoredTensor]:
    """Check a header; ValueError says what is wrong with it."""
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_object)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"its header is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"its {METADATA} is not an object of texts")
    found = sorted((_tensor(path, name, entry, begin) for name, entry in header.items()), key=lambda t: (t[0], t[1]))
    end = begin
    for start, stop, tensor in found:
        if start != end:
            kind = "overlap those before it" if start < end else "leave a gap before it"
            raise ValueError(f"{shown(tensor.name)}: its bytes {kind}")
        end = stop
    if end != size:
        raise ValueError(f"its tensors end at byte {end:,}")
    return {tensor.name: tensor for _, _, tensor in found}


def _tensor(path: Path, name: str, entry: Any, begin: int) -> tuple[int, int, StoredTensor]:
    what = shown(name)
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"{what}: an object with dtype, shape and data_offsets is needed")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{what}: dtype {str(dtype)[:40]!r} is not known; accepted are {', '.join(BITS)}")
    if not (isinstance(shape, list) and len(shape) <= MOST_DIMENSIONS and all(_is_size(size) for size in shape)):
        raise ValueError(f"{what}: its shape is not a list of whole numbers from 0")
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(_is_size(offset) for offset in offsets)):
        raise ValueError(f"{what}: its data_offsets are not two whole numbers from 0")
    stored = StoredTensor(name, dtype, tuple(shape), path, begin + offsets[0])
    if offsets[1] - offsets[0] != stored.nbytes or stored.count * BITS[dtype] % 8:
        raise ValueError(f"{what}: {dtype} of shape {shape} does not take {offsets[1] - offsets[0]:,} bytes")
    return begin + offsets[0], begin + offsets[1], stored


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def _weight_map(index: Path) -> dict[str, str]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=_object)
        places = content["weight_map"].items()
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError, OSError) as error:
        raise CheckpointError(f"{index}: not an index of shards ({str(error)[:200] or type(error).__name__})") from None
    found: dict[str, str] = {}
    for name, file in places:
        if not isinstance(file, str) or not file.endswith(ENDING):
            raise CheckpointError(f"{index}: {shown(name)} is in {str(file)[:80]!r}, which is not a {ENDING} file")
        if file != Path(file).name or file.startswith(".") or "\\" in file or "\0" in file:
            raise CheckpointError(f"{index}: shards must lie in the folder itself; {file[:80]!r} does not")
        found[name] = file
    if not found:
        raise CheckpointError(f"{index}: not an index of shards (it names no tensor)")
    return found
