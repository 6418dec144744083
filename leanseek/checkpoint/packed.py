"""Packed: int8 and int4 folders, written module by module and mapped into memory; a cache has those of others."""

from __future__ import annotations

import hashlib
import math
import mmap
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanseek import variables
from leanseek.checkpoint.convert import read_config, write_beside
from leanseek.checkpoint.directory import check_tensors, empty_model, load_model
from leanseek.checkpoint.names import entries
from leanseek.checkpoint.quantised import (
    DTYPES,
    bytes_of,
    check_form,
    is_quantised,
    over,
    pieces,
    read_rows,
    read_tensor,
    scales_of,
)
from leanseek.checkpoint.shards import Layout, StoredTensor, read_shards, shown, stored_tensors
from leanseek.checkpoint.stored import fill, has_fp8, is_native, load_stored
from leanseek.checkpoint.work import OnProgress, Piece, WorkFolder, free_target
from leanseek.checkpoint.writer import MAX_SHARD_BYTES, ShardWriter, split
from leanseek.errors import CheckpointError, ConfigError, KernelError, UsageError, nearest
from leanseek.files import write_json
from leanseek.kernels.packed import LAYOUT, PANEL, Packed, empty_packed, pack_into
from leanseek.model.config import ModelConfig
from leanseek.model.experts import Experts
from leanseek.model.layers import Linear, SwiGLU
from leanseek.model.transformer import Transformer

# Form of the weights -> bits of a number.
FORMS = {"int8": 8, "int4": 4}
_TYPES = {"fp32": "float32", "bf16": "bfloat16"}
# What a model's weights can be kept in; fp8: as DeepSeek's FP8 folders have them.
WEIGHTS = (*_TYPES, "fp8", *FORMS)
METHOD = "leanseek-packed"
# Changes when folders that an earlier version began cannot be gone on with.
VERSION = 1
CACHE = Path("leanseek") / "packed"


@dataclass(frozen=True)
class Part:
    """What is written of a module: a packed weight, or a plain tensor.

    Args:
        name: of the plain tensor, or before `.codes` and `.scales`.
        sources: tensors of the plain folder that it is made of, in order; of a stack of gate and up, in pairs.
        packed: its form without memory ("meta"); None: a plain tensor.
        dtype: of a plain tensor.
        shape: of a plain tensor.
    """

    name: str
    sources: tuple[str, ...]
    packed: Packed | None = None
    dtype: str = "F32"
    shape: tuple[int, ...] = ()

    @property
    def outputs(self) -> tuple[Layout, ...]:
        """The tensors that are written."""
        if self.packed is None:
            return (Layout(self.name, self.dtype, self.shape),)
        kind = "U8" if self.packed.bits == 4 else "F32"
        return (
            Layout(f"{self.name}.codes", "U8", tuple(self.packed.codes.shape)),
            Layout(f"{self.name}.scales", kind, tuple(self.packed.scales.shape)),
        )

    @property
    def nbytes(self) -> int:
        """What they take."""
        return sum(output.nbytes for output in self.outputs)


def parts_of(model: Transformer, bits: int) -> Iterator[Part]:
    """Yield the parts of a model's packed folder.

    Packed are the projections of attention and MLPs, the experts and the head; with 8 bits always what absorbed
    attention takes apart (kv_b_proj), if a head's widths are whole panels. As fp32 stay norms, routers, the indexer and
    the MTP layer's joint; as bf16 the embedding.

    Args:
        model: its shapes are looked at alone.
        bits: 4 or 8.
    """
    taken: set[str] = set()
    for name, module in model.named_modules():
        for part in _packed_parts(name, module, bits, model.config):
            taken.update(part.sources if name != "lm_head" else ("lm_head.weight",))
            yield part
    for entry in entries(model):
        if entry.name not in taken and not entry.copy:
            dtype = "BF16" if entry.name == "model.embed_tokens.weight" else "F32"
            yield Part(entry.name, (entry.name,), dtype=dtype, shape=tuple(entry.target.shape))


def _packed_parts(name: str, module: nn.Module, bits: int, config: ModelConfig) -> Iterator[Part]:
    meta: Any = {"device": "meta"}
    if isinstance(module, Experts):
        count, double, dim = module.gate_up_proj.shape
        both = [f"{name}.{e}.{kind}.weight" for e in range(count) for kind in ("gate_proj", "up_proj")]
        yield Part(f"{name}.gate_up_proj", tuple(both), empty_packed(bits, double // 2, dim, count, halves=2, **meta))
        down = tuple(f"{name}.{e}.down_proj.weight" for e in range(count))
        yield Part(f"{name}.down_proj", down, empty_packed(bits, dim, double // 2, count, **meta))
    elif isinstance(module, SwiGLU):
        width, dim = module.gate_proj.weight.shape
        both = [f"{name}.{kind}.weight" for kind in ("gate_proj", "up_proj")]
        yield Part(f"{name}.gate_up_proj", tuple(both), empty_packed(bits, width, dim, 1, halves=2, **meta))
        yield Part(f"{name}.down_proj", (f"{name}.down_proj.weight",), empty_packed(bits, dim, width, 1, **meta))
    elif isinstance(module, Linear):
        weight = f"{name}.weight"
        attends = is_quantised(weight) and ".mlp." not in name and ".indexer." not in name
        if name.endswith("kv_b_proj"):
            # Heads are taken apart where panels begin.
            attends = attends and not (config.qk_nope_head_dim % PANEL or config.v_head_dim % PANEL)
            bits = max(FORMS.values())
        if name == "lm_head" or attends:
            source = "model.embed_tokens.weight" if name == "lm_head" and config.tie_word_embeddings else weight
            yield Part(name, (source,), empty_packed(bits, *module.weight.shape, **meta))


def form_of(config: Mapping[str, Any]) -> str | None:
    """Return the form ("int8" or "int4") of a folder by its config.json's content; None: it is not packed.

    Raises:
        CheckpointError: it is of a layout that this version does not know.
    """
    found = config.get("quantization_config")
    if not isinstance(found, Mapping) or found.get("quant_method") != METHOD:
        return None
    form = next((name for name, bits in FORMS.items() if bits == found.get("bits")), None)
    if form is None or found.get("layout") != LAYOUT:
        raise CheckpointError(
            f"the folder is packed with layout {found.get('layout')!r} and {found.get('bits')!r} bits; this version "
            f"reads layout {LAYOUT} with {' or '.join(map(str, FORMS.values()))} bits: convert the plain folder again"
        )
    return form


def open_model(
    folder: str | Path,
    weights: str,
    *,
    device: str = "cpu",
    progress: Callable[[float], None] = lambda share: None,
) -> Transformer:
    """Open a model folder for inference, its weights in the form that is wanted.

    Args:
        folder: a Hugging Face directory, or a packed one.
        weights: of `WEIGHTS`.
        device: "cpu" or "cuda"; packed weights and FP8 are for CPUs. There, bf16 and FP8 folders stay as they are and
            are mapped into memory.
        progress: is told the share of the weights that are ready.
    Raises:
        CheckpointError: the folder cannot be loaded.
        ConfigError: an unknown form, or one that the device does not take.
    """
    if weights not in WEIGHTS:
        raise ConfigError(
            f"weights = {weights!r} is not known{nearest(weights, WEIGHTS)}; accepted are {', '.join(WEIGHTS)}"
        )
    if weights not in _TYPES and device != "cpu":
        raise ConfigError(f"weights = {weights!r} is for device = 'cpu', not {device!r}; take bf16 there")
    if weights in FORMS:
        return load_packed(folder, weights, progress=progress)
    if (Path(folder) / "config.json").is_file() and (form := form_of(read_config(Path(folder)))) is not None:
        raise CheckpointError(f"{folder} is packed as {form}: ask for {form} weights (--weights {form})")
    if weights == "fp8" and not has_fp8(folder):
        raise CheckpointError(
            f"{folder} has no FP8 weights; make some with `leanseek convert {folder} --to fp8`, or take --weights bf16"
        )
    if weights == "fp8" or (weights == "bf16" and device == "cpu" and is_native()):
        return load_stored(folder, weights, progress=progress)
    return load_model(folder, dtype=_TYPES[weights], device=device, progress=progress)


def load_packed(
    folder: str | Path, weights: str, *, progress: Callable[[float], None] = lambda share: None
) -> Transformer:
    """Open a folder with packed weights, which stay in its files and are read as they are needed.

    A folder that is not packed is packed first, into the cache, where the next call finds it.

    Args:
        folder: packed in the same form, or a plain one (bf16, fp32, FP8).
        weights: a key of `FORMS`.
        progress: is told the share that is packed, from 0 to 1.
    Raises:
        CheckpointError: the folder cannot be read, is packed in another form, or the cache has no room.
    """
    folder = Path(folder)
    config = read_config(folder)
    form = form_of(config)
    if form not in (None, weights):
        raise CheckpointError(f"{folder} is packed as {form}: ask for {form} weights, or pack the plain folder anew")
    if form is None:
        folder = _cached(folder, weights, progress)
    progress(1.0)
    return _mapped(folder, FORMS[weights])


def _mapped(folder: Path, bits: int) -> Transformer:
    model = empty_model(ModelConfig.from_file(folder / "config.json"), device="meta")
    tensors = stored_tensors(read_shards(folder))
    parts = list(parts_of(model, bits))
    _check(folder, parts, tensors)
    _place(model, ((part, tuple(_tensor(tensors[output.name]) for output in part.outputs)) for part in parts))
    return model.eval()


def _tensor(stored: StoredTensor) -> Tensor:
    """Map a tensor; it stays in the file for as long as it is looked at."""
    dtype = torch.uint8 if stored.dtype == "U8" else DTYPES[stored.dtype]
    return over(stored.map(), dtype, stored.shape)


def _check(folder: Path, parts: Iterable[Part], tensors: Mapping[str, StoredTensor]) -> None:
    wanted = {output.name: output for part in parts for output in part.outputs}
    for name, output in wanted.items():
        stored = tensors.get(name)
        if stored is None:
            raise CheckpointError(f"{folder} lacks the tensor {shown(name)}{nearest(name, tensors)}")
        if (stored.dtype, stored.shape) != (output.dtype, output.shape):
            raise CheckpointError(
                f"{stored.path}: {shown(name)} is {stored.dtype} of shape {list(stored.shape)}; "
                f"{output.dtype} of shape {list(output.shape)} is needed"
            )
    if extra := [name for name in tensors if name not in wanted]:
        raise CheckpointError(f"{folder} has a tensor that the model does not, {shown(extra[0])}")


def _cached(folder: Path, weights: str, progress: Callable[[float], None]) -> Path:
    """Return the packed twin of a plain folder, packing it if it is not in the cache or was made of other files."""
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    state = hashlib.sha256(f"{VERSION} {LAYOUT}".encode())
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        status = path.stat()
        state.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    cache = variables.cache_folder() / CACHE
    target = cache / f"{place}-{state.hexdigest()[:16]}-{weights}"
    if (target / "config.json").is_file():
        return target
    for old in cache.glob(f"{place}-*-{weights}"):
        shutil.rmtree(old, ignore_errors=True)
    work = PackedConversion(folder, target, weights)
    done = 0

    def on_progress(count: int, kept: bool) -> None:
        nonlocal done
        done += count
        progress(done / max(work.total_bytes, 1))

    target.parent.mkdir(parents=True, exist_ok=True)
    work.run(on_progress)
    return target


class PackedConversion:
    """The packing of one folder; made file by file, so that memory holds one matrix, and gone on with if stopped.

    Args:
        source: a plain model folder.
        out: where to; empty, or not there yet.
        to: a key of `FORMS`.
        scale_format: as of other conversions; there is one format here.
        max_shard_bytes: of one file of `out`.
    Raises:
        UsageError: `out` is `source`.
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
        self.source, self.out, self.to = Path(source), Path(out), to
        if to not in FORMS:
            raise UsageError(f"to = {to!r} is not known{nearest(to, FORMS)}; accepted: {', '.join(FORMS)}")
        target = free_target(self.source, self.out)
        self._config = read_config(self.source)
        check_form(self._config, str(self.source / "config.json"))
        model = empty_model(ModelConfig.from_file(self.source / "config.json"), device="meta")
        shards = read_shards(self.source)
        self._paths = [shard.path for shard in shards]
        self._tensors = stored_tensors(shards)
        self._scales = scales_of(self._tensors)
        check_tensors(self.source, model, self._tensors, self._scales)
        self._max_shard_bytes = max_shard_bytes
        self._parts = split(list(parts_of(model, FORMS[to])), max_shard_bytes)
        self.work = WorkFolder(target)

    @property
    def total_bytes(self) -> int:
        """What is to be read."""
        return sum(self._tensors[name].nbytes for parts in self._parts for part in parts for name in part.sources)

    @property
    def written_bytes(self) -> int:
        """What the weights will take."""
        return sum(part.nbytes for parts in self._parts for part in parts)

    def run(self, on_progress: OnProgress = lambda count, kept: None) -> None:
        """Pack, or go on with what an earlier call began; `out` is there at the end, whole, and not before.

        Args:
            on_progress: called after every matrix.
        Raises:
            CheckpointError: a weight cannot be packed, `source` changed meanwhile, the disk is full, or another
                process is at the same work. What was finished is kept.
        """
        self.work.make(
            self.source,
            [self._piece(parts, on_progress) for parts in self._parts],
            self._fingerprint,
            self._finish,
            on_progress,
        )

    def _piece(self, parts: Sequence[Part], on_progress: OnProgress) -> Piece:
        def write(writer: ShardWriter) -> None:
            for part in parts:
                self._write(writer, part, on_progress)

        read_bytes = sum(self._tensors[name].nbytes for part in parts for name in part.sources)
        return Piece([output for part in parts for output in part.outputs], read_bytes, write)

    def _finish(self, folder: Path) -> None:
        write_beside(self.source, folder)
        write_json(folder / "config.json", packed_config(self._config, self.to))

    def _fingerprint(self) -> dict[str, Any]:
        files = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in self._paths}
        return {
            "version": VERSION,
            "layout": LAYOUT,
            "source": str(self.source.resolve()),
            "files": files,
            "to": self.to,
            "max_shard_bytes": self._max_shard_bytes,
        }

    def _write(self, writer: ShardWriter, part: Part, on_progress: OnProgress) -> None:
        if part.packed is None:
            stored = self._tensors[part.name]
            dtype = DTYPES[part.dtype]
            for _, rows in pieces(stored, self._scales.get(part.name)):
                writer.append(part.name, bytes_of(rows.to(dtype)))
            on_progress(stored.nbytes, False)
            return
        halves = 2 if part.name.endswith("gate_up_proj") else 1
        shape = (part.packed.codes.shape[-3] // halves, *part.packed.codes.shape[-2:])
        codes = torch.empty(shape, dtype=torch.uint8)
        scales = torch.empty(
            (shape[0], *part.packed.scales.shape[part.packed.codes.ndim - 2 :]), dtype=part.packed.scales.dtype
        )
        for name in part.sources:
            stored = self._tensors[name]
            scale = self._scales.get(name)
            # Mapped as it is where it can be: a matrix is not in memory twice.
            plain = stored.dtype in ("F32", "BF16")
            weight = read_rows(stored) if scale is None and plain else read_tensor(stored, scale)
            try:
                pack_into(weight, codes, scales)
            except KernelError as error:
                raise CheckpointError(f"{stored.path}: {shown(name)} cannot be packed ({error})") from None
            writer.append(f"{part.name}.codes", bytes_of(codes))
            writer.append(f"{part.name}.scales", bytes_of(scales))
            on_progress(stored.nbytes, False)


def packed_config(config: Mapping[str, Any], to: str) -> dict[str, Any]:
    """Return config.json's content for packed weights."""
    changed = {key: value for key, value in config.items() if key not in ("quantization_config", "auto_map")}
    form = {"quant_method": METHOD, "layout": LAYOUT, "bits": FORMS[to]}
    return {**changed, "torch_dtype": "float32", "quantization_config": form}


def packed_bytes(config: ModelConfig, form: str) -> int:
    """Return what a model's weights take in a packed form, from its shape alone."""
    return sum(part.nbytes for part in parts_of(empty_model(config, device="meta"), FORMS[form]))


def random_parts(config: ModelConfig, form: str, seed: int = 0) -> Iterator[tuple[Part, tuple[Tensor, ...]]]:
    """Yield a model's parts with random tensors of a usual size: for measuring speed.

    The values mean nothing, but none of them overflows.
    """
    generator = torch.Generator().manual_seed(seed)
    # One random megabyte again and again: numbers of a normal spread would take minutes.
    # No weight is the lowest there is: the mean would not be nought, all tokens would soon have one direction, and one
    # choice of experts.
    low, high = (torch.randint(1, 16, (1 << 20,), dtype=torch.uint8, generator=generator) for _ in range(2))
    whole = torch.randint(1, 256, (1 << 20,), dtype=torch.uint8, generator=generator)
    for part in parts_of(empty_model(config, device="meta"), FORMS[form]):
        if part.packed is None:
            tensor = torch.empty(part.shape, dtype=DTYPES[part.dtype]).normal_(0, 0.02, generator=generator)
            yield part, (tensor.fill_(1) if part.name.endswith("norm.weight") else tensor,)
            continue
        codes = over(_large_pages(part.packed.codes.nbytes), torch.uint8, tuple(part.packed.codes.shape))
        flat, block = codes.view(-1), low | high << 4 if part.packed.bits == 4 else whole
        for first in range(0, flat.numel(), block.numel()):
            flat[first : first + block.numel()] = block[: flat.numel() - first]
        spread = 4.6 if part.packed.bits == 4 else 74.0  # of codes that are all as likely
        packed = replace(part.packed, codes=codes, scales=torch.empty_like(part.packed.scales, device="cpu"))
        packed.fill_scales(1 / spread / math.sqrt(packed.inputs))
        yield part, (codes, packed.scales)


def _large_pages(size: int) -> memoryview:
    """Return fresh memory in large pages, where the system has them, as mapped files are: small ones cost a tenth."""
    memory = mmap.mmap(
        -1, size, **({"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if sys.platform == "linux" else {})
    )
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)


def random_packed(config: ModelConfig, form: str, seed: int = 0) -> Transformer:
    """Return a model of `random_parts`, in memory."""
    model = empty_model(config, device="meta")
    _place(model, random_parts(config, form, seed))
    return model.eval()


def _place(model: Transformer, found: Iterable[tuple[Part, tuple[Tensor, ...]]]) -> None:
    """Put parts' tensors into a model without memory."""
    modules = dict(model.named_modules())
    pairs: dict[str, dict[str, Packed]] = {}
    for part, tensors in found:
        if part.packed is None:
            fill(model, part.name, tensors[0])
            continue
        packed = replace(part.packed, codes=tensors[0], scales=tensors[1])
        owner, _, kind = part.name.rpartition(".")
        if kind in ("gate_up_proj", "down_proj"):
            pairs.setdefault(owner, {})[kind] = packed
        else:
            module = modules[part.name]
            assert isinstance(module, Linear)
            module.hold(packed)
    for owner, both in pairs.items():
        module = modules[owner]
        assert isinstance(module, Experts | SwiGLU)
        module.hold(both["gate_up_proj"], both["down_proj"])
