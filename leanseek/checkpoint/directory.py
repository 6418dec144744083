"""Directory: a Hugging Face model folder, opened with every tensor checked first, saved whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from leanseek.checkpoint.names import entries, file_tensors
from leanseek.errors import CheckpointError, ConfigError, nearest
from leanseek.files import new_folder, write_json
from leanseek.model.config import ModelConfig
from leanseek.model.transformer import Transformer
from leanseek.tokens.tokenizer import Tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(folder: str | Path, *, dtype: str = "float32", device: str = "cpu") -> Transformer:
    """Open a checkpoint folder of a DeepSeek-V3 model.

    Every tensor's name and shape is checked before the first weight is read.

    Args:
        folder: has config.json and model.safetensors (or its index and shards).
        dtype: "float32" or "bfloat16", what the weights are kept in.
        device: "cpu" or "cuda".
    Returns:
        The model in evaluation mode.
    Raises:
        CheckpointError: a file is missing or truncated, or a tensor is missing or does not fit.
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
    model = empty_model(config, dtype=dtype)
    places = _places(folder)
    _check(folder, model, places)
    with torch.no_grad():
        for path in sorted(set(places.values())):
            with _open(path) as file:
                for entry in entries(model):
                    if places.get(entry.name) == path and not entry.copy:
                        entry.target.copy_(file.get_tensor(entry.name))
    return model.to(device).eval()


def save_model(model: Transformer, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Save a model as a Hugging Face folder, which transformers loads; a folder that exists is replaced.

    Args:
        model: its weights are written in the dtype that they have.
        folder: where to.
        tokenizer: written beside it, if given.
    Raises:
        CheckpointError: the disk is full or the folder cannot be written; what was there is untouched.
    """
    try:
        with new_folder(folder) as temporary:
            write_model(model, temporary, tokenizer)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be saved ({error}); what was there before is untouched") from None


def write_model(model: Transformer, folder: Path, tokenizer: Tokenizer | None) -> None:
    """Write a model's files into a folder that nobody reads yet."""
    config = model.config.to_dict()
    config["torch_dtype"] = next(name for name, kind in DTYPES.items() if kind == model.lm_head.weight.dtype)
    write_json(folder / "config.json", config)
    ends = {"bos_token_id": model.config.bos_token_id, "eos_token_id": model.config.eos_token_id}
    write_json(folder / "generation_config.json", {**ends, "do_sample": True, "temperature": 1.0, "top_p": 1.0})
    save_file(file_tensors(model), folder / WEIGHTS, metadata={"format": "pt"})
    if tokenizer is not None:
        tokenizer.save(folder)


def empty_model(config: ModelConfig, *, dtype: str = "float32") -> Transformer:
    """Build a model whose weights are not filled yet; router biases are float32 and zero."""
    model = Transformer(config)
    if dtype != "float32":
        for parameter in model.parameters():
            parameter.data = parameter.data.to(DTYPES[dtype])
    return model


def _places(folder: Path) -> dict[str, Path]:
    """Return which file holds each tensor, from the files' own headers."""
    index = folder / INDEX
    if index.is_file():
        try:
            names: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files = sorted({str(name) for name in names.values()})
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index}: not an index of shards ({error!r})") from None
        if any("/" in name or name.startswith(".") for name in files):
            raise CheckpointError(f"{index}: shards must lie in the folder itself")
    else:
        files = [WEIGHTS]
    places: dict[str, Path] = {}
    for name in files:
        with _open(folder / name) as file:
            places |= dict.fromkeys(file.keys(), folder / name)
    return places


def _open(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file; a model folder has its weights there")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path}: the file is damaged or was cut short ({path.stat().st_size:,} bytes: {error}); get it anew"
        ) from None


def _check(folder: Path, model: Transformer, places: dict[str, Path]) -> None:
    """Refuse a checkpoint whose tensors are not the model's, before any is used."""
    wanted = {entry.name: entry for entry in entries(model)}
    missing = [name for name, entry in wanted.items() if name not in places and not entry.copy]
    unexpected = [name for name in places if name not in wanted and not name.endswith("rotary_emb.inv_freq")]
    if missing:
        hint = nearest(missing[0], unexpected)
        raise CheckpointError(f"{folder} lacks {len(missing)} tensors, {_some(missing)}{hint}")
    if unexpected:
        raise CheckpointError(
            f"{folder} has {len(unexpected)} tensors that the model does not, {_some(unexpected)}"
            f"{nearest(unexpected[0], wanted)}: does config.json belong to these weights?"
        )
    for path in sorted(set(places.values())):
        with _open(path) as file:
            for name in file.keys():
                if name not in wanted:
                    continue
                got, need = tuple(file.get_slice(name).get_shape()), tuple(wanted[name].target.shape)
                if got != need:
                    raise CheckpointError(f"{path}: {name} has shape {list(got)}, the model needs {list(need)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
