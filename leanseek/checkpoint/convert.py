"""Conversion: a model folder's weights in another type, file by file without building the model; it can be resumed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanseek.checkpoint.quantised import (
    BLOCK,
    DTYPES,
    FP8,
    PLAIN,
    SCALE,
    bytes_of,
    check_form,
    grid_shape,
    is_quantised,
    pieces,
    quantise_blocks,
    scale_values,
    scales_of,
)
from leanseek.checkpoint.shards import INDEX, Layout, StoredTensor, read_shards, shown, stored_tensors
from leanseek.checkpoint.work import OnProgress, Piece, WorkFolder, free_target
from leanseek.checkpoint.writer import MAX_SHARD_BYTES, ShardWriter, split
from leanseek.errors import CheckpointError, UsageError, nearest
from leanseek.files import write_atomic, write_json

KINDS = ("fp8", "bf16", "fp32")
SCALE_FORMATS = ("fp32", "ue8m0")
# Changes when folders that an earlier version began cannot be gone on with.
VERSION = 1
# Copied beside the weights: tokenizer, chat template, generation settings, licence. Never code, never pickles.
COPIED, LARGEST_COPY_BYTES = (".json", ".jinja", ".txt", ".model"), 100_000_000
# Whole numbers, which no type of weight concerns.
_COUNTS = ("BOOL", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64")
_PART_BYTES = 1 << 24


@dataclass(frozen=True)
class Change:
    """What becomes of one stored tensor.

    Args:
        source: the tensor.
        scale: of its blocks, if it is FP8.
        outputs: what is written: the tensor, and its scales if it will be FP8.
    """

    source: StoredTensor
    scale: StoredTensor | None
    outputs: tuple[Layout, ...]

    @property
    def nbytes(self) -> int:
        """What the outputs take."""
        return sum(output.nbytes for output in self.outputs)

    @property
    def read_bytes(self) -> int:
        """What is read for them."""
        return self.source.nbytes + (self.scale.nbytes if self.scale is not None else 0)


class Conversion:
    """The conversion of one folder. Shards are made in a hidden folder beside `out`, where a later call goes on.

    Args:
        source: a model folder.
        out: where to; empty, or not there yet.
        to: one of `KINDS`: fp8 as DeepSeek's files have it (what they keep in bf16 becomes bf16), bf16 or fp32.
        scale_format: for fp8: "ue8m0" for scales that are powers of two (V3.1 and later), "fp32" for any.
        max_shard_bytes: of one file of `out`.
    Raises:
        UsageError: `out` is `source`, or an option is none.
        CheckpointError: `source` cannot be read, or `out` has something in it.
    """

    def __init__(
        self,
        source: str | Path,
        out: str | Path,
        to: str,
        *,
        scale_format: str = "fp32",
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> None:
        self.source, self.out, self.to, self.scale_format = Path(source), Path(out), to, scale_format
        if to not in KINDS:
            raise UsageError(f"to = {to!r} is not known{nearest(to, KINDS)}; accepted: {', '.join(KINDS)}")
        if scale_format not in SCALE_FORMATS or (to != "fp8" and scale_format != "fp32"):
            known = " or ".join(SCALE_FORMATS)
            raise UsageError(f"scale_format = {scale_format!r}: {known} are accepted, and go with fp8 alone")
        if max_shard_bytes < 1:
            raise UsageError(f"max_shard_bytes = {max_shard_bytes}: at least 1 is needed")
        self._target = free_target(self.source, self.out)
        self._config = read_config(self.source)
        check_form(self._config, str(self.source / "config.json"))
        self._shards = read_shards(self.source)
        self._max_shard_bytes = max_shard_bytes
        self._changes = split(self._plan(), max_shard_bytes)
        self.work = WorkFolder(self._target)

    @property
    def total_bytes(self) -> int:
        """What is to be read."""
        return sum(change.read_bytes for changes in self._changes for change in changes)

    @property
    def written_bytes(self) -> int:
        """What the weights will take."""
        return sum(change.nbytes for changes in self._changes for change in changes)

    def run(self, on_progress: OnProgress = lambda count, kept: None) -> None:
        """Convert, or go on with what an earlier call began; `out` is there at the end, whole, and not before.

        Args:
            on_progress: called after every few MB.
        Raises:
            CheckpointError: a weight or a scale is not finite, `source` changed meanwhile, the disk is full, or
                another process is at the same work. What was finished is kept.
        """
        self.work.make(
            self.source,
            [self._piece(changes, on_progress) for changes in self._changes],
            self._fingerprint,
            self._finish,
            on_progress,
        )

    def _piece(self, changes: Sequence[Change], on_progress: OnProgress) -> Piece:
        def write(writer: ShardWriter) -> None:
            for change in changes:
                self._convert(writer, change, on_progress)

        outputs = [output for change in changes for output in change.outputs]
        return Piece(outputs, sum(change.read_bytes for change in changes), write)

    def _plan(self) -> Iterator[Change]:
        """Yield what becomes of each tensor, in the files' order."""
        tensors = stored_tensors(self._shards)
        scales = scales_of(tensors)
        of_weights = {scale.name for scale in scales.values()}
        quantised = False
        for name, stored in tensors.items():
            if name in of_weights or name.endswith("rotary_emb.inv_freq"):
                continue
            outputs = self._outputs(stored, scales.get(name))
            quantised = quantised or outputs[0].dtype == FP8
            yield Change(stored, scales.get(name), outputs)
        if self.to == "fp8" and not quantised:
            raise CheckpointError(f"{self.source} has no tensor that DeepSeek quantises: is it such a model?")

    def _outputs(self, stored: StoredTensor, scale: StoredTensor | None) -> tuple[Layout, ...]:
        name, shape = stored.name, stored.shape
        if stored.dtype in _COUNTS:
            return (Layout(name, stored.dtype, shape),)
        if stored.dtype not in PLAIN and scale is None:
            raise CheckpointError(f"{stored.path}: {shown(name)} is {stored.dtype}, which cannot be converted")
        if self.to == "fp8" and is_quantised(name) and len(shape) == 2:
            kind = scale.dtype if scale is not None and self._is_same_form else "F32"
            return Layout(name, FP8, shape), Layout(name + SCALE, kind, grid_shape(shape))
        # The router's bias adds up small steps, and DeepSeek's files have it in fp32 too.
        wide = self.to == "fp32" or name.endswith("e_score_correction_bias")
        return (Layout(name, "F32" if wide else "BF16", shape),)

    @property
    def _is_same_form(self) -> bool:
        """Whether FP8 weights already have the scales that are wanted; they are then copied, not rounded again."""
        there = (self._config.get("quantization_config") or {}).get("scale_fmt")
        return self.to == "fp8" and (there == "ue8m0") == (self.scale_format == "ue8m0")

    def _fingerprint(self) -> dict[str, Any]:
        """What work that is gone on with must have in common with this."""
        files = {}
        for shard in self._shards:
            status = shard.path.stat()
            files[shard.path.name] = [status.st_size, status.st_mtime_ns]
        return {
            "version": VERSION,
            "source": str(self.source.resolve()),
            "files": files,
            "to": self.to,
            "scale_format": self.scale_format,
            "max_shard_bytes": self._max_shard_bytes,
            "same_form": self._is_same_form,
        }

    def _convert(self, writer: ShardWriter, change: Change, on_progress: OnProgress) -> None:
        source, scale, (first, *rest) = change.source, change.scale, change.outputs
        if first.dtype == source.dtype and (scale is None or self._is_same_form):
            _copy(writer, source, on_progress)
            if scale is not None and rest:
                scale_values(scale)
                _copy(writer, scale, on_progress)
            return
        if scale is not None:
            on_progress(scale.nbytes, False)
        row_bytes = source.nbytes // max((source.shape or (1,))[0], 1)
        for number, rows in pieces(source, scale):
            if rest:
                rounded, row_scales = quantise_blocks(rows, scale_fmt="ue8m0" if self.scale_format == "ue8m0" else None)
                if not row_scales.isfinite().all():
                    raise CheckpointError(
                        f"{source.path}: {shown(source.name)} has a weight that is not finite, in rows {number} to "
                        f"{number + len(rows) - 1}; FP8 cannot hold it"
                    )
                writer.append(first.name, bytes_of(rounded))
                writer.append(rest[0].name, bytes_of(row_scales))
            else:
                writer.append(first.name, bytes_of(rows.to(DTYPES[first.dtype])))
            on_progress(row_bytes * len(rows), False)

    def _finish(self, folder: Path) -> None:
        write_beside(self.source, folder)
        write_json(folder / "config.json", converted_config(self._config, self.to, self.scale_format))


def converted_config(config: Mapping[str, Any], to: str, scale_format: str = "fp32") -> dict[str, Any]:
    """Return config.json's content for converted weights: their type and quantisation, all else as it was."""
    changed = {key: value for key, value in config.items() if key not in ("quantization_config", "auto_map")}
    kind = "float32" if to == "fp32" else "bfloat16"
    changed["torch_dtype"] = kind
    if "dtype" in changed:
        changed["dtype"] = kind
    if to == "fp8":
        form: dict[str, Any] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
        form["weight_block_size"] = [BLOCK, BLOCK]
        if scale_format == "ue8m0":
            form["scale_fmt"] = "ue8m0"
        changed["quantization_config"] = form
    return changed


def write_beside(source: Path, folder: Path) -> None:
    """Copy what stands beside a folder's weights: tokenizer, chat template, settings, licence."""
    for path in sorted(source.iterdir()):
        if _is_copied(path):
            write_atomic(folder / path.name, path.read_bytes())


def _copy(writer: ShardWriter, stored: StoredTensor, on_progress: OnProgress) -> None:
    for first in range(0, stored.nbytes, _PART_BYTES):
        last = min(first + _PART_BYTES, stored.nbytes)
        writer.append(stored.name, stored.map(first, last))
        on_progress(last - first, False)


def _is_copied(path: Path) -> bool:
    if path.name.startswith(".") or path.name in ("config.json", INDEX) or path.name.endswith(".index.json"):
        return False
    known = path.suffix in COPIED or path.name.startswith("LICENSE")
    return known and path.is_file() and path.stat().st_size <= LARGEST_COPY_BYTES


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json's content as it is.

    Raises:
        CheckpointError: there is none, or it is no JSON object.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder; a model folder has a config.json")
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; a model folder has a config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return config
