"""Resume: the training state beside a checkpoint's weights: optimiser, step and whatever a stage must not forget."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from leanseek.checkpoint.directory import write_model
from leanseek.checkpoint.merged import write_merged
from leanseek.checkpoint.parts import Rows, announce, file_digest, gather_parts, read_parts, write_part
from leanseek.checkpoint.share import Share
from leanseek.errors import CheckpointError
from leanseek.files import new_folder, write_json
from leanseek.model.transformer import Transformer
from leanseek.tokens.tokenizer import Tokenizer

FOLDER, TENSORS, VALUES, HASHES = "resume", "state.safetensors", "state.json", "sha256.json"
# Separates the keys of nested dictionaries; parameter names have dots, never this.
SEPARATOR = "|"
STAGING = ".parts"


def save_checkpoint(
    folder: str | Path,
    model: Transformer | Share,
    tokenizer: Tokenizer | None,
    state: Mapping[str, Any],
    others: Iterable[int] = (),
) -> None:
    """Save a model folder with its training state, whole or not at all.

    Args:
        folder: where to.
        model, tokenizer: as in `directory.save_model`; packed weights are written as `merged.write_merged` says. Or
            this process's share of the weights: `others` write theirs.
        state: nested dictionaries of tensors, JSON values, and `parts.Rows` of what other processes have more rows of.
        others: numbers of the other processes, which call `save_part` for the same folder.
    Raises:
        CheckpointError: the disk is full or the folder cannot be written; nothing else was touched.
    """
    try:
        with new_folder(folder) as temporary:
            if isinstance(model, Share):
                model.write(temporary)
                model.files.finish(temporary, tokenizer)
            else:
                (write_model if model.packed_bits is None else write_merged)(model, temporary, tokenizer)
            (temporary / FOLDER).mkdir()
            flat = dict(_flatten(state))
            if rows := _rows(flat):
                write_part(temporary / FOLDER, 0, rows)
                flat = {key: value for key, value in flat.items() if key not in rows}
            known = gather_parts(staging(folder), others, temporary, temporary / FOLDER)
            tensors = {key: value.detach().contiguous() for key, value in flat.items() if isinstance(value, Tensor)}
            save_file(tensors, temporary / FOLDER / TENSORS)
            values = {key: value for key, value in flat.items() if not isinstance(value, Tensor)}
            write_json(temporary / FOLDER / VALUES, values)
            write_json(temporary / FOLDER / HASHES, _hashes(temporary, known))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} cannot be saved ({error}); earlier checkpoints are untouched, and the run goes on from the last"
        ) from None


def save_part(folder: str | Path, number: int, state: Mapping[str, Any], share: Share | None = None) -> None:
    """Save the rows of a state, and the weights, that one process has, for the one that saves the checkpoint.

    Args:
        folder: the checkpoint's.
        number: of the process.
        state: as in `save_checkpoint`; all but `parts.Rows` is left out.
        share: its share of the weights, if it has any.
    Raises:
        CheckpointError: the disk is full or the folder cannot be written.
    """
    try:
        files = [] if share is None else share.write(staging(folder))
        files.append(write_part(staging(folder), number, _rows(dict(_flatten(state)))))
        announce(staging(folder), number, files)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be saved ({error}); earlier checkpoints are untouched") from None


def staging(folder: str | Path) -> Path:
    """Return where parts of a checkpoint lie until all are there."""
    return Path(folder).with_name(f".{Path(folder).name}{STAGING}")


def copy_of_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state whose tensors are copies, in the processor's memory."""
    return {
        key: copy_of_state(value)
        if isinstance(value, Mapping)
        else value.detach().to("cpu", copy=True)
        if isinstance(value, Tensor)
        else replace(value, tensor=value.tensor.detach().to("cpu", copy=True))
        if isinstance(value, Rows)
        else value
        for key, value in state.items()
    }


def load_state(folder: str | Path, *, lazily: bool = False) -> dict[str, Any]:
    """Return the training state that `save_checkpoint` put beside a model.

    Args:
        folder: the checkpoint's.
        lazily: give what lies in parts as `parts.Parted`, which reads no more rows than are asked for.
    Raises:
        CheckpointError: it is missing or damaged.
    """
    path = Path(folder) / FOLDER
    try:
        flat: dict[str, Any] = dict(load_file(path / TENSORS))
        flat |= json.loads((path / VALUES).read_text(encoding="utf-8"))
        flat |= {key: one if lazily else one[:] for key, one in read_parts(path).items()}
    except (OSError, SafetensorError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: the training state is missing or damaged ({error})") from None
    state: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(SEPARATOR)
        node = state
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return state


def check_checkpoint(folder: str | Path) -> None:
    """Check every file of a checkpoint by the hash that was written with it; one without hashes is as good as checked.

    Raises:
        CheckpointError: a file is missing or is not as it was written.
    """
    folder = Path(folder)
    if not (folder / FOLDER / HASHES).exists():
        return
    try:
        known = json.loads((folder / FOLDER / HASHES).read_text(encoding="utf-8"))
        differ = [name for name, digest in known.items() if file_digest(folder / name) != digest]
    except (OSError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{folder}: the training state is missing or damaged ({error})") from None
    if differ:
        raise CheckpointError(f"{folder} is damaged: {', '.join(differ)} is not as it was written")


def _hashes(folder: Path, known: Mapping[Path, str]) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): known.get(path) or file_digest(path) for path in files}


def _rows(flat: Mapping[str, Any]) -> dict[str, Rows]:
    return {key: value for key, value in flat.items() if isinstance(value, Rows)}


def _flatten(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}{SEPARATOR}")
        else:
            yield prefix + key, value
