"""leanseek inspect: what a model folder or a shape is, how large, and whether this machine can serve it."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Any

import psutil

from leanseek.checkpoint.shards import Shard, read_shards
from leanseek.cli.columns import columns
from leanseek.errors import CheckpointError, nearest
from leanseek.model.config import ModelConfig, load_preset, preset_names
from leanseek.model.count import (
    cache_bytes_per_token,
    decode_flops_per_token,
    forward_flops_per_token,
    parameters,
    training_flops_per_token,
)
from leanseek.run import Run, model_folder
from leanseek.units import format_bytes, format_count, format_flops

# Of the texts that FLOPs are counted in, where the model's context is not shorter: what V3 was pretrained with.
TEXT_TOKENS = 4096
# What `serve` keeps weights and cache in -> bytes of a number.
WEIGHTS = {"fp32": 4, "bf16": 2}
# What the rows of the table are, by the names of `count.Parameters`.
PARTS = {
    "embedding": "embedding",
    "attention": "attention",
    "dense_mlp": "dense MLPs",
    "routed_experts": "routed experts",
    "shared_experts": "shared experts",
    "router": "routers",
    "norms": "norms",
    "head": "head",
}


def inspect(model: str, *, json: bool = False) -> None:
    """Show what a model is: its kind, size by part, cache and work per token, its files, and what serving it needs.

    The headers of a folder's files are checked; no weight is read.

    Example: leanseek inspect deepseek-v3

    Args:
        model: A run folder (its latest checkpoint), a model folder, or the name of a shape from leanseek models.
        json: Print as JSON.
    """
    found = describe(model)
    print(json_format.dumps(found, indent=2, ensure_ascii=False) if json else "\n".join(lines(found)))


def describe(model: str) -> dict[str, Any]:
    """Return what is known of a model without reading a weight.

    Raises:
        CheckpointError: no such folder or shape, or its files are damaged.
        ConfigError: config.json is not that of a model that leanseek knows.
    """
    folder = _folder(model)
    config = load_preset(model) if folder is None else ModelConfig.from_file(folder / "config.json")
    counted = parameters(config)
    text_tokens = min(TEXT_TOKENS, config.max_position_embeddings)
    return {
        "model": model if folder is None else str(folder),
        "architecture": config.family.architecture,
        "model_type": config.model_type,
        "layers": config.num_hidden_layers,
        "context_tokens": config.max_position_embeddings,
        "parameters": counted.as_dict(),
        "cache_bytes_per_token": {name: _cache_bytes(config, size) for name, size in WEIGHTS.items()},
        "flops_per_token": {
            "text_tokens": text_tokens,
            "forward": forward_flops_per_token(config, text_tokens),
            "training": training_flops_per_token(config, text_tokens, mtp=bool(counted.mtp)),
            "decode": decode_flops_per_token(config, text_tokens),
        },
        "quantised": config.extra.get("quantization_config"),
        "files": None if folder is None else _files(folder, read_shards(folder)),
        "serving": _serving(config, counted.total + counted.mtp),
    }


def lines(found: dict[str, Any]) -> list[str]:
    """Return a description as lines to read."""
    counted, work, files = found["parameters"], found["flops_per_token"], found["files"]
    cache = ", ".join(f"{format_bytes(size)} in {name}" for name, size in found["cache_bytes_per_token"].items())
    facts = [
        ("kind", f"{found['architecture']} ({found['model_type']}), {found['layers']} layers"),
        ("context", f"{found['context_tokens']:,} tokens"),
        ("parameters", f"{format_count(counted['total'])}, {format_count(counted['active'])} active"),
        ("cache a token", cache),
        (
            f"FLOPs a token, {work['text_tokens']:,}-token texts",
            ", ".join(f"{name} {format_flops(work[name])}" for name in ("forward", "training", "decode")),
        ),
        ("quantised", _form(found["quantised"]) if found["quantised"] else "no"),
    ]
    if counted["mtp"]:
        facts.insert(3, ("MTP layer besides", f"{format_count(counted['mtp'])}"))
    if files is not None:
        types = ", ".join(f"{name} {format_bytes(size)}" for name, size in files["dtypes"].items())
        shards = f"{files['shards']} file" + ("s" if files["shards"] != 1 else "")
        facts += [
            ("on disk", f"{format_bytes(files['bytes'])} in {shards}, {files['tensors']:,} tensors"),
            ("types on disk", types),
            ("tokenizer", _yes(files["tokenizer"])),
            ("chat template", _yes(files["chat_template"])),
        ]
    active = {"routed_experts": "active_experts"}
    rows = [
        (title, format_count(counted[part]), format_count(counted[active.get(part, part)]))
        for part, title in PARTS.items()
        if counted[part]
    ]
    if counted["mtp"]:
        rows.append(("MTP layer, besides", format_count(counted["mtp"]), format_count(counted["mtp_active"])))
    serving = found["serving"]
    needs = [
        (
            name,
            *(format_bytes(need[key]) for key in ("weights_bytes", "cache_bytes", "needed_bytes")),
            _yes(need["fits"]),
        )
        for name, need in serving["as"].items()
    ]
    free = format_bytes(serving["free_bytes"])
    return [
        found["model"],
        columns(facts),
        "",
        columns([("part", "parameters", "active"), *rows], right=(1, 2)),
        "",
        f"serving one text as long as the context, with {free} of memory free:",
        columns([("weights in", "weights", "cache", "needed", "fits here"), *needs], right=(1, 2, 3)),
    ]


def _folder(model: str) -> Path | None:
    """Return the folder that is meant, or None for a preset's name."""
    path = Path(model)
    if path.is_dir() or "/" in model:
        return model_folder(path)
    if model in preset_names():
        return None
    runs = [str(child) for child in Path("runs").glob("*") if Run.is_run(child)]
    hint = nearest(model, [*preset_names(), *runs])
    raise CheckpointError(
        f"{model}: neither a folder nor a shape{hint}; give a run folder, a model folder, or one of "
        f"{', '.join(preset_names())}"
    )


def _files(folder: Path, shards: list[Shard]) -> dict[str, Any]:
    tensors = [tensor for shard in shards for tensor in shard.tensors.values()]
    types: dict[str, int] = {}
    for tensor in tensors:
        types[tensor.dtype] = types.get(tensor.dtype, 0) + tensor.nbytes
    return {
        "shards": len(shards),
        "bytes": sum(shard.nbytes for shard in shards),
        "tensors": len(tensors),
        "dtypes": dict(sorted(types.items(), key=lambda item: -item[1])),
        "tokenizer": (folder / "tokenizer.json").is_file(),
        "chat_template": (folder / "chat_template.jinja").is_file() or _has_template(folder / "tokenizer_config.json"),
    }


def _has_template(path: Path) -> bool:
    try:
        values = json_format.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and bool(values.get("chat_template"))


def _cache_bytes(config: ModelConfig, size: int) -> int:
    return cache_bytes_per_token(config, bytes_per_number=size)


def _serving(config: ModelConfig, count: int) -> dict[str, Any]:
    """Return what weights and the cache of one text take, and whether this machine has as much."""
    free = psutil.virtual_memory().available
    forms = {}
    for name, size in WEIGHTS.items():
        weights = count * size
        cache = config.max_position_embeddings * _cache_bytes(config, size)
        forms[name] = {
            "weights_bytes": weights,
            "cache_bytes": cache,
            "needed_bytes": weights + cache,
            "fits": weights + cache <= free,
        }
    return {"free_bytes": free, "as": forms}


def _form(form: Any) -> str:
    """Return a config.json's quantization_config in a few words."""
    if not isinstance(form, dict):
        return str(form)
    words = (form.get(key) for key in ("quant_method", "fmt", "weight_block_size", "scale_fmt"))
    return ", ".join(str(word) for word in words if word is not None)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
