"""Shards: a folder of token ids on disk, read by memory map: what `leanseek data` makes and pretraining reads.

The folder holds `index.json` (format, tokenizer, sources with their licences and hashes, counts), `tokenizer/`, and the
tokens of both parts as plain `.npy` files, documents end to end, each after a BOS.
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leanseek.errors import DataError
from leanseek.files import new_file

FORMAT = 1
INDEX, TOKENIZER = "index.json", "tokenizer"
PARTS = ("train", "validation")


def write_tokens(path: Path, tokens: NDArray[Any]) -> None:
    """Write one shard, whole or not at all."""
    with new_file(path) as file:
        np.save(file, tokens, allow_pickle=False)


def token_type(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """Return what ids are kept in."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def read_index(folder: str | Path) -> dict[str, Any]:
    """Return what a folder's index.json says.

    Raises:
        DataError: it is not a folder of shards, is not finished, or is of a format that is not known.
    """
    path = Path(folder) / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{folder} has no {INDEX}: it is no folder of shards, or not a finished one (leanseek data goes on with it)"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is damaged ({error})") from None
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise DataError(f"{path}: format {FORMAT} is known, not what this has; make the shards anew")
    return index


def provenance(folders: Iterable[str]) -> list[dict[str, Any]]:
    """Return what folders of shards say of the texts that they were made of, for a model's card."""
    return list(itertools.chain.from_iterable(read_index(folder)["sources"] for folder in folders))


class Shards:
    """One part of a folder's tokens, as if they were one long row; nothing is read before it is asked for.

    Args:
        folder: of shards.
        part: "train" or "validation".
    Raises:
        DataError: the folder is not whole.
    """

    def __init__(self, folder: str | Path, part: str = "train") -> None:
        folder = Path(folder)
        self.index = read_index(folder)
        self._files: list[NDArray[Any]] = []
        for entry in self.index["shards"][part]:
            path = folder / entry["file"]
            try:
                tokens = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError, EOFError) as error:
                raise DataError(f"{path}: missing or damaged ({error}); make the shards anew") from None
            if tokens.shape != (entry["tokens"],):
                raise DataError(f"{path} has {tokens.size} tokens, the index says {entry['tokens']}")
            self._files.append(tokens)
        self._starts = [0, *itertools.accumulate(len(tokens) for tokens in self._files)]

    def __len__(self) -> int:
        """Tokens of all files."""
        return self._starts[-1]

    def __getitem__(self, at: Tensor) -> Tensor:
        """Return the tokens at rows of consecutive places, [rows, length], as int64."""
        out = torch.empty(at.shape, dtype=torch.int64)
        for row, first in enumerate(at[:, 0].tolist()):
            done, wanted = 0, at.shape[1]
            file = bisect.bisect_right(self._starts, first) - 1
            while done < wanted:
                start = first + done - self._starts[file]
                piece = self._files[file][start : start + wanted - done]
                out[row, done : done + len(piece)] = torch.from_numpy(piece.astype(np.int64))
                done += len(piece)
                file += 1
        return out

    def all(self) -> Tensor:
        """Return every token; for a part that fits into memory."""
        if not self._files:
            return torch.zeros(0, dtype=torch.int32)
        return torch.from_numpy(np.concatenate(self._files).astype(np.int32))

    def documents(self) -> Iterator[list[int]]:
        """Yield each document's ids, without the BOS that it begins with."""
        bos_id = self.index["bos_id"]
        for tokens in self._files:
            starts = np.flatnonzero(tokens == bos_id) if bos_id is not None else np.zeros(1, dtype=np.int64)
            for start, end in itertools.pairwise([*starts.tolist(), len(tokens)]):
                yield tokens[start + (bos_id is not None) : end].tolist()
