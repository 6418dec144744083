"""Directory: a Hugging Face model folder, opened with every tensor checked first, saved whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from leanseek.checkpoint.names import entries
from leanseek.checkpoint.quantised import DTYPES as STORED
from leanseek.checkpoint.quantised import PLAIN, bytes_of, check_form, pieces, scales_of
from leanseek.checkpoint.shards import Layout, StoredTensor, read_shards, shown, stored_tensors
from leanseek.checkpoint.writer import MAX_SHARD_BYTES, ShardWriter, shard_names, split, write_index
from leanseek.errors import CheckpointError, ConfigError, nearest
from leanseek.files import new_folder, write_json
from leanseek.model.config import ModelConfig
from leanseek.model.transformer import Transformer
from leanseek.tokens.tokenizer import Tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(
    folder: str | Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    progress: Callable[[float], None] = lambda share: None,
    wanted: Callable[[str], bool] = lambda name: True,
) -> Transformer:
    """Open a checkpoint folder: of leanseek, of DeepSeek (FP8 too), or saved by transformers.

    Every tensor's name, shape, type and place in its file is checked before the first weight is read. Weights then
    come a few MB at a time, so that memory holds little more than the model.

    Args:
        folder: has config.json and model.safetensors (or its index and shards).
        dtype: "float32" or "bfloat16", what the weights are kept in.
        device: "cpu" or "cuda".
        progress: is told the share of the weights' bytes that are there, from 0 to 1, now and then.
        wanted: whether a tensor is read, by its name in the files; memory that nothing is read into takes no room.
    Returns:
        The model in evaluation mode.
    Raises:
        CheckpointError: a file is missing or damaged, or a tensor is missing or does not fit.
        ConfigError: config.json is not that of a model that leanseek knows.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder; a model folder has a config.json")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype = {dtype!r}: accepted are {', '.join(DTYPES)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda', but torch finds no CUDA device here; use --device cpu")
    config = ModelConfig.from_file(folder / "config.json")
    check_form(config.extra, str(folder / "config.json"))
    tensors = stored_tensors(read_shards(folder))
    scales = scales_of(tensors)
    model = empty_model(config, dtype=dtype, device=device)
    check_tensors(folder, model, tensors, scales)
    targets = {entry.name: entry.target for entry in entries(model) if not entry.copy and wanted(entry.name)}
    total_bytes, done_bytes = sum(target.nbytes for target in targets.values()), 0
    with torch.no_grad():
        # In the order of the files: disks read on faster than they jump.
        for stored in sorted((tensors[name] for name in targets), key=lambda stored: (stored.path, stored.start)):
            target = targets[stored.name]
            for first, rows in pieces(stored, scales.get(stored.name)):
                part = target[first : first + len(rows)]
                part.copy_(rows)
                done_bytes += part.nbytes
                progress(done_bytes / total_bytes)
    model.eval()
    return model


def save_model(
    model: Transformer,
    folder: str | Path,
    tokenizer: Tokenizer | None = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Save a model as a Hugging Face folder, which transformers loads; a folder that exists is replaced.

    Args:
        model: its weights are written in the dtype that they have.
        folder: where to.
        tokenizer: written beside it, if given.
        max_shard_bytes: a model with more is divided into several files with an index.
    Raises:
        CheckpointError: the disk is full or the folder cannot be written; what was there is untouched.
        ConfigError: `max_shard_bytes` is below 1.
    """
    try:
        with new_folder(folder) as temporary:
            write_model(model, temporary, tokenizer, max_shard_bytes=max_shard_bytes)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be saved ({error}); what was there before is untouched") from None


def write_model(
    model: Transformer, folder: Path, tokenizer: Tokenizer | None, *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write a model's files into a folder that nobody reads yet; no weight is in memory a second time."""
    if max_shard_bytes < 1:
        raise ConfigError(f"max_shard_bytes = {max_shard_bytes}: at least 1 is needed")
    tensors = {
        entry.name: (layout_of(entry.name, entry.target), partial(_itself, entry.target)) for entry in entries(model)
    }
    dtype = next(name for name, kind in DTYPES.items() if kind == model.lm_head.weight.dtype)
    write_tensors(folder, model.config, dtype, tensors, tokenizer, max_shard_bytes=max_shard_bytes)


def write_tensors(
    folder: Path,
    config: ModelConfig,
    dtype: str,
    tensors: Mapping[str, tuple[Layout, Callable[[], Tensor]]],
    tokenizer: Tokenizer | None = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write a model's files from tensors that are made one at a time.

    Args:
        folder: that nobody reads yet.
        config: the shape.
        dtype: that config.json names.
        tensors: by name: what it will be in the file, and what makes it.
        tokenizer, max_shard_bytes: as of `save_model`.
    """
    write_config(folder, config, dtype)
    shards = split([layout for layout, _ in tensors.values()], max_shard_bytes)
    for name, shard in zip(shard_names(len(shards)), shards, strict=True):
        with ShardWriter(folder / name, shard) as writer:
            for layout in shard:
                writer.append(layout.name, bytes_of(tensors[layout.name][1]()))
    write_index(folder, shards)
    if tokenizer is not None:
        tokenizer.save(folder)


def write_config(folder: Path, config: ModelConfig, dtype: str) -> None:
    """Write what a model folder says of its shape, and how it is sampled from."""
    values = config.to_dict()
    values["torch_dtype"] = dtype
    values.pop("quantization_config", None)  # of the files that it was read from
    if "dtype" in values:
        values["dtype"] = dtype
    write_json(folder / "config.json", values)
    ends = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    write_json(folder / "generation_config.json", {**ends, "do_sample": True, "temperature": 1.0, "top_p": 1.0})


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def empty_model(config: ModelConfig, *, dtype: str = "float32", device: str | None = None) -> Transformer:
    """Build a model whose weights are not filled yet; router biases are float32 and zero.

    Args:
        config: the shape.
        dtype: "float32" or "bfloat16".
        device: where; None: torch's present default.
    """
    with nullcontext() if device is None else torch.device(device):
        model = Transformer(config)
        if dtype != "float32":
            for parameter in model.parameters():
                # Memory that nothing was written to takes no room: never is the model there twice.
                parameter.data = torch.empty_like(parameter, dtype=DTYPES[dtype])
    return model


def copy_of(model: Transformer, config: ModelConfig | None = None) -> Transformer:
    """Return a model of its own with the same weights, in the processor's memory.

    Args:
        model: what is copied.
        config: of the copy, which has the same tensors; None: the same.
    """
    copy = empty_model(
        config or model.config, dtype=str(model.lm_head.weight.dtype).removeprefix("torch."), device="cpu"
    )
    targets = copy.state_dict()
    for name, tensor in model.state_dict().items():
        targets[name].copy_(tensor)
    return copy


def layout_of(name: str, tensor: Tensor) -> Layout:
    """Return what a file's header says of a tensor."""
    dtype = next(stored for stored, kind in STORED.items() if kind == tensor.dtype)
    return Layout(name, dtype, tuple(tensor.shape))


def check_tensors(
    folder: Path, model: Transformer, tensors: Mapping[str, StoredTensor], scales: Mapping[str, StoredTensor]
) -> None:
    """Refuse a checkpoint whose tensors are not the model's, before any is used.

    Raises:
        CheckpointError: one is missing, is not the model's, or does not fit.
    """
    wanted = {entry.name: entry for entry in entries(model)}
    missing = [name for name, entry in wanted.items() if name not in tensors and not entry.copy]
    known = {*wanted, *(scale.name for weight, scale in scales.items() if weight in wanted)}
    unexpected = [name for name in tensors if name not in known and not _is_ignored(name, model.config)]
    if missing:
        hint = nearest(missing[0], unexpected)
        raise CheckpointError(f"{folder} lacks {len(missing)} tensors, {_some(missing)}{hint}")
    if unexpected:
        raise CheckpointError(
            f"{folder} has {len(unexpected)} tensors that the model does not, {_some(unexpected)}"
            f"{nearest(unexpected[0], wanted)}: does config.json belong to these weights?"
        )
    for name, entry in wanted.items():
        stored = tensors.get(name)
        if stored is None:
            continue  # a copy
        need = tuple(entry.target.shape)
        if stored.shape != need:
            raise CheckpointError(f"{stored.path}: {name} has shape {list(stored.shape)}, the model needs {list(need)}")
        if stored.dtype not in PLAIN and name not in scales:
            accepted = ", ".join(PLAIN)
            raise CheckpointError(
                f"{stored.path}: {name} is {stored.dtype}; accepted are {accepted} and scaled F8_E4M3"
            )


def _is_ignored(name: str, config: ModelConfig) -> bool:
    """Whether a tensor says nothing new: rope's frequencies, or a head that is the embedding."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and config.tie_word_embeddings)


def _some(names: list[str]) -> str:
    return ", ".join(map(shown, names[:3])) + (" ..." if len(names) > 3 else "")
