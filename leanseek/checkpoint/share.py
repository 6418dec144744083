"""Share: what one process writes of a model folder that several write together, each the weights that it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from leanseek.checkpoint.directory import empty_model, layout_of, write_config
from leanseek.checkpoint.names import Entry, entries
from leanseek.checkpoint.quantised import bytes_of
from leanseek.checkpoint.shards import Layout
from leanseek.checkpoint.writer import MAX_SHARD_BYTES, ShardWriter, shard_names, split, write_index
from leanseek.model.config import ModelConfig
from leanseek.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Files:
    """All files of weights of a model folder, and who writes which; the same on all processes.

    Args:
        config: the shape.
        dtype: that config.json names.
        shards: the tensors of each file, in the order of the files.
        writers: of each file.
    """

    config: ModelConfig
    dtype: str
    shards: tuple[tuple[Layout, ...], ...]
    writers: tuple[int, ...]

    @classmethod
    def plan(
        cls, config: ModelConfig, dtype: str, writer: Callable[[Entry], int], *, max_shard_bytes: int = MAX_SHARD_BYTES
    ) -> Files:
        """Divide a model's tensors into files, of each writer its own.

        Args:
            config, dtype: of the model.
            writer: which process writes a tensor; it is told the tensor's place, not its numbers.
            max_shard_bytes: of a file.
        """
        by_writer: dict[int, list[Layout]] = {}
        for entry in entries(empty_model(config, dtype=dtype, device="meta")):
            by_writer.setdefault(writer(entry), []).append(layout_of(entry.name, entry.target))
        found = [(one, tuple(shard)) for one in sorted(by_writer) for shard in split(by_writer[one], max_shard_bytes)]
        return cls(config, dtype, tuple(shard for _, shard in found), tuple(one for one, _ in found))

    def finish(self, folder: Path, tokenizer: Tokenizer | None) -> None:
        """Write what belongs to no process's weights: config, index and tokenizer."""
        write_config(folder, self.config, self.dtype)
        write_index(folder, self.shards)
        if tokenizer is not None:
            tokenizer.save(folder)


@dataclass(frozen=True)
class Share:
    """One process's weights of a model folder.

    Args:
        files: of the whole folder.
        number: of the process.
        tensors: all that it writes, by their names in the files.
    """

    files: Files
    number: int
    tensors: Mapping[str, Tensor]

    def write(self, folder: Path) -> list[Path]:
        """Write this process's files into a folder that nobody reads yet; return them."""
        folder.mkdir(parents=True, exist_ok=True)
        found = []
        names = shard_names(len(self.files.shards))
        for name, shard, writer in zip(names, self.files.shards, self.files.writers, strict=True):
            if writer == self.number:
                with ShardWriter(folder / name, shard) as file:
                    for layout in shard:
                        file.append(layout.name, bytes_of(self.tensors[layout.name]))
                found.append(folder / name)
        return found
