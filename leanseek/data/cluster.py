"""Cluster: documents read, judged and encoded by a Ray Data job on many machines, and handed over in their order."""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leanseek.data.duplicates import BANDS, Bands
from leanseek.data.filters import fault_of
from leanseek.data.preparation import Document, Source
from leanseek.errors import DataError, LeanseekError
from leanseek.joining import join_ray, ray_for
from leanseek.tokens.tokenizer import Tokenizer

# Documents that one worker judges and encodes in a call.
DOCUMENTS = 256
# What a reader takes of a core: less than who encodes, so that Ray does not make one step of both, and a large file is
# encoded by many.
READER_CORES = 0.5


class Cluster:
    """Ray Data's workers, as `preparation.Readers`: each file is read by one, and what was read encoded by all.

    What comes back is in the order of the files and of the documents in them, whoever was faster, so that the shards
    are those that one process makes. Documents to be left out as near duplicates are told by this process alone.

    Args:
        tokenizer: what the text is encoded by.
        filter, deduplicate, seed: as of `preparation.Wishes`.
        address: of a running Ray cluster, "auto" for the one that this machine is part of, or "local" to start one
            here. leanseek must be installed on its nodes, and the sources must lie where all of them see them.
    Raises:
        ConfigError: Ray is not installed.
        RunError: no cluster answers.
    """

    def __init__(self, tokenizer: Tokenizer, *, filter: bool, deduplicate: bool, seed: int, address: str) -> None:
        self._ray = ray_for("leanseek data --cluster")
        import ray.data  # noqa: F401, PLC0415 - an extra

        logging.getLogger("ray.data").setLevel(logging.WARNING)
        self._judge = (tokenizer, filter, deduplicate, seed)
        self._began = join_ray(self._ray, address)

    def documents(self, sources: Sequence[Source], skipped: Sequence[int]) -> Iterator[tuple[int, Document | str]]:
        """Yield the documents of all sources in order, and each source's hash after its last one.

        Raises:
            DataError: a source cannot be read, as `sources.read_file` says.
        """
        data = self._ray.data
        context = data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        work = [
            {"number": number, "name": _seen_from_elsewhere(source), "bytes": source.bytes, "skipped": count}
            for number, (source, count) in enumerate(zip(sources, skipped, strict=True))
        ]
        rows = data.from_items(work, override_num_blocks=len(work)).flat_map(_read, num_cpus=READER_CORES)
        cores = int(self._ray.cluster_resources().get("CPU", 1))
        rows = rows.map_batches(
            _Judge,
            fn_constructor_args=self._judge,
            batch_size=DOCUMENTS,
            batch_format="numpy",
            num_cpus=1,
            compute=data.ActorPoolStrategy(min_size=1, max_size=max(1, cores - 1)),
        )
        try:
            for row in rows.iter_rows():
                yield int(row["source"]), row["text"] if row["last"] else _document(row)
        except self._ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            raise cause if isinstance(cause, LeanseekError) else DataError(f"the Ray job failed ({error})") from error

    def close(self) -> None:
        """Part from the cluster, if this joined it."""
        if self._began:
            self._ray.shutdown()


def _seen_from_elsewhere(source: Source) -> str:
    return source.name if source.is_dataset else str(Path(source.name).absolute())


def _read(work: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Read one source: a row for each document, and a last one with its hash as text."""
    digest, number = hashlib.sha256(), work["number"]
    texts = Source(work["name"], work["bytes"]).documents(digest)
    for text in itertools.islice(texts, work["skipped"], None):
        yield {"source": number, "last": False, "text": text}
    yield {"source": number, "last": True, "text": digest.hexdigest()}


class _Judge:
    """Judges and encodes documents; Ray calls it in its workers."""

    def __init__(self, tokenizer: Tokenizer, filter: bool, deduplicate: bool, seed: int) -> None:
        self.tokenizer, self.filter = tokenizer, filter
        self.bands = Bands(seed) if deduplicate else None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add why each document is left out, its bands, and its tokens as bytes."""
        texts = [None if last else str(text) for text, last in zip(batch["text"], batch["last"], strict=True)]
        faults = [fault_of(text) if self.filter and text is not None else None for text in texts]
        kept = [text if fault is None else None for text, fault in zip(texts, faults, strict=True)]
        wanted = [text for text in kept if text is not None]
        encoded = iter(self.tokenizer.encode_batch(wanted))
        ids = [b"" if text is None else np.array(next(encoded), np.uint32).tobytes() for text in kept]
        bands = [b"" if text is None or self.bands is None else self.bands(text).tobytes() for text in kept]
        return {
            "source": batch["source"],
            "last": batch["last"],
            "text": batch["text"],
            "fault": np.array([fault or "" for fault in faults], dtype=object),
            "bands": np.array(bands, dtype=object),
            "ids": np.array(ids, dtype=object),
        }


def _document(row: Mapping[str, Any]) -> Document:
    bands = np.frombuffer(row["bands"], np.uint64)
    fault = str(row["fault"]) or None
    ids = None if fault else np.frombuffer(row["ids"], np.uint32)
    return Document(str(row["text"]), fault, bands if len(bands) == BANDS else None, ids)
