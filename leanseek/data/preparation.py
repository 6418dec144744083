"""Preparation: text of any size -> shards of token ids, in bounded memory; stopped, it goes on where it was."""

from __future__ import annotations

import hashlib
import itertools
import json
import queue
import random
import threading
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from leanseek.data.duplicates import NearDuplicates
from leanseek.data.filters import fault_of
from leanseek.data.shards import FORMAT, INDEX, PARTS, TOKENIZER, token_type, write_tokens
from leanseek.data.sources import DATASET, Digest, read_documents, read_file, source_files
from leanseek.errors import DataError
from leanseek.files import write_json
from leanseek.tokens.tokenizer import FIM, Tokenizer

STATE = "preparation.json"
# Characters that are encoded in one call, and how many such batches are read ahead.
BATCH_CHARACTERS = 4_000_000
AHEAD = 2
# Bytes of text that a document is taken to have, to size the memory of duplicates before any is read.
DOCUMENT_BYTES = 1000

Item = TypeVar("Item")
Ids = NDArray[Any]


@dataclass(frozen=True)
class Wishes:
    """What is wanted of the text; a folder that was begun goes on with the same wishes only.

    Args:
        validation_fraction: share of documents kept for validation.
        filter: whether documents of poor quality are left out (`filters`).
        deduplicate: whether near duplicates are left out (`duplicates`).
        fim: share of documents turned into fill-in-the-middle examples (prefix, suffix, middle; V3: 0.1).
        seed: of what is turned, and where.
        license: what the text may be used for, as its owner says; noted, and carried into the model's card.
        shard_tokens: tokens of one file, about.
    """

    validation_fraction: float = 0.005
    filter: bool = False
    deduplicate: bool = False
    fim: float = 0.0
    seed: int = 0
    license: str | None = None
    shard_tokens: int = 16_000_000


class Watched(Protocol):
    """Who is told how far it is: `log.Progress`, or anything with this method."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count bytes of text as done."""


@dataclass(frozen=True)
class Source:
    """One file, or one dataset.

    Args:
        name: its path, or `datasets:NAME`.
        bytes: its size; 0 where it is not known before it is read.
    """

    name: str
    bytes: int

    @property
    def is_dataset(self) -> bool:
        """Whether its own library looks after it."""
        return self.name.startswith(DATASET)

    def documents(self, digest: Digest) -> Iterator[str]:
        """Yield its documents, and tell a digest the bytes of its file meanwhile."""
        return read_documents([self.name]) if self.is_dataset else read_file(Path(self.name), digest)


@dataclass(frozen=True)
class Document:
    """One document, with what has been found out about it; what is None is found out when it is needed.

    Args:
        text: of it.
        fault: why it is left out, by its own; where filters are wanted.
        bands: for near duplicates; where these are to be left out.
        ids: the tokens of the text.
    """

    text: str
    fault: str | None = None
    bands: NDArray[np.uint64] | None = None
    ids: Ids | None = None


class Readers(Protocol):
    """Who reads sources, judges and encodes documents elsewhere: `cluster.Cluster`."""

    def documents(self, sources: Sequence[Source], skipped: Sequence[int]) -> Iterator[tuple[int, Document | str]]:
        """Yield the documents of all sources in order, and each source's hash after its last one.

        Args:
            sources: to read.
            skipped: how many of each one's first documents are known.
        """


class Preparation:
    """Shards in the making.

    Args:
        sources: files, folders and datasets, as `read_documents` takes them.
        folder: where to; one that was begun with the same sources, tokenizer and wishes is gone on with.
        tokenizer: what the text is encoded by; saved beside the shards.
        wishes: what is wanted of the text.
        readers: who reads, judges and encodes; None: this process. The shards are the same.
    Raises:
        DataError: there is no text, the folder is finished or was begun otherwise, or FIM is wanted of a tokenizer
            without its tokens.
    """

    def __init__(
        self,
        sources: list[str],
        folder: str | Path,
        tokenizer: Tokenizer,
        wishes: Wishes,
        readers: Readers | None = None,
    ) -> None:
        self.readers = readers
        self.folder, self.tokenizer, self.wishes = Path(folder), tokenizer, wishes
        if (self.folder / INDEX).exists():
            raise DataError(f"{folder} is finished already; give another folder, or delete it first")
        names = [s for s in sources if s.startswith(DATASET)]
        self.sources = [Source(str(f), f.stat().st_size) for f in source_files([s for s in sources if s not in names])]
        self.sources += [Source(name, 0) for name in names]
        self._fim = [tokenizer.find(text) for text in FIM]
        if wishes.fim and None in self._fim:
            raise DataError(f"--fim {wishes.fim}: the tokenizer has no {', '.join(FIM)}")
        self._type = token_type(tokenizer.vocab_size)
        self._known = NearDuplicates(self.total_bytes // DOCUMENT_BYTES, wishes.seed) if wishes.deduplicate else None
        made_of = [asdict(wishes), [asdict(source) for source in self.sources], tokenizer.digest_text()]
        self._fingerprint = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
        self._state: dict[str, Any] = {
            "fingerprint": self._fingerprint,
            "read": 0,  # documents of all sources so far
            "kept": 0,
            "shards": {part: [] for part in PARTS},
            "counts": [Counter() for _ in self.sources],
            "validation_bytes": 0,
        }
        self._buffers: dict[str, list[Ids]] = {part: [] for part in PARTS}
        # A stopped preparation reads what it has done once more, so that these have seen every byte in the end.
        self._digests: list[str | None] = [None] * len(self.sources)
        self._band_files = 0
        self._new_bands: list[NDArray[np.uint64]] = []
        self._go_on()

    @property
    def total_bytes(self) -> int:
        """Bytes of all sources whose size is known."""
        return sum(source.bytes for source in self.sources)

    @property
    def begun(self) -> bool:
        """Whether an earlier process has left something to go on with."""
        return bool(self._state["read"])

    def run(self, progress: Watched | None = None) -> dict[str, Any]:
        """Do all that is left; return the index.

        Raises:
            DataError: a source cannot be read, or too few documents are left.
            OSError: the disk is full; what was written is gone on with later.
        """
        with closing(_ahead(self._batches(), AHEAD)) as batches:
            for batch in batches:
                self._encode(batch)
                if sum(map(len, self._buffers["train"])) >= self.wishes.shard_tokens:
                    self._flush()
                if progress is not None:
                    progress.advance(batch.characters)
        self._flush()
        if any(not self._state["shards"][part] for part in PARTS):
            raise DataError(
                f"{self._saved['kept']} documents are left of {self._saved['read']}: too few to keep some for "
                f"validation (--validation {self.wishes.validation_fraction})"
            )
        index = self._index()
        self.tokenizer.save(self.folder / TOKENIZER)
        write_json(self.folder / INDEX, index)
        for path in [self.folder / STATE, *self.folder.glob("bands-*.npy")]:
            path.unlink(missing_ok=True)
        return index

    def _batches(self) -> Iterator[_Batch]:
        """Yield the documents that are kept, about `BATCH_CHARACTERS` at a time."""
        every = max(2, round(1 / self.wishes.validation_fraction))
        read, kept, skipped = self._state["read"], self._state["kept"], [c["read"] for c in self._state["counts"]]
        found = self._read(skipped) if self.readers is None else self.readers.documents(self.sources, skipped)
        batch: list[tuple[Document, bool]] = []
        size = seen = 0
        for number, document in found:
            if isinstance(document, str):
                self._digests[number] = document
                continue
            counts = self._state["counts"][number]
            read += 1
            seen += len(document.text)
            counts["read"] += 1
            fault = self._fault(document)
            if fault is not None:
                counts[fault] += 1
                continue
            counts["kept"] += 1
            kept += 1
            batch.append((document, kept % every == 0))
            size += len(document.text)
            if size >= BATCH_CHARACTERS:
                yield self._batch(batch, seen, read, kept)
                batch, size, seen = [], 0, 0
        yield self._batch(batch, seen, read, kept)

    def _read(self, skipped: Sequence[int]) -> Iterator[tuple[int, Document | str]]:
        """Do here what `Readers` do elsewhere; documents are judged and encoded later."""
        for number, (source, count) in enumerate(zip(self.sources, skipped, strict=True)):
            digest = hashlib.sha256()
            for text in itertools.islice(source.documents(digest), count, None):
                fault = fault_of(text) if self.wishes.filter else None
                bands = self._known.bands(text) if fault is None and self._known is not None else None
                yield number, Document(text, fault, bands)
            yield number, digest.hexdigest()

    def _batch(self, documents: list[tuple[Document, bool]], seen: int, read: int, kept: int) -> _Batch:
        bands, self._new_bands = self._new_bands, []
        return _Batch(documents, seen, read, kept, [dict(counts) for counts in self._state["counts"]], bands)

    def _fault(self, document: Document) -> str | None:
        if document.fault is None and self._known is not None:
            assert document.bands is not None, "whoever reads computes them"
            self._new_bands.append(document.bands)
            if self._known.seen(document.bands):
                return "near duplicate"
        return document.fault

    def _encode(self, batch: _Batch) -> None:
        texts: list[str] = []
        middles = []
        for number, (document, held_out) in enumerate(batch.documents, self._encoded):
            middles.append(parts := None if held_out else self._middle(document.text, number))
            texts += parts or ([document.text] if document.ids is None else [])
        encoded = iter(self.tokenizer.encode_batch(texts))
        begin, hole, end = self._fim
        for parts, (document, held_out) in zip(middles, batch.documents, strict=True):
            one: Sequence[int] | Ids
            if parts is not None:
                prefix, suffix, middle = next(encoded), next(encoded), next(encoded)
                one = [begin, *prefix, hole, *suffix, end, *middle]
            else:
                one = next(encoded) if document.ids is None else document.ids
            self._buffers[PARTS[held_out]].append(np.array([*self.tokenizer.beginning, *one], dtype=self._type))
            self._state["validation_bytes"] += len(document.text.encode()) if held_out else 0
        self._encoded += len(batch.documents)
        self._pending = batch
        self._bands += batch.bands

    def _middle(self, text: str, number: int) -> list[str] | None:
        """Return prefix, suffix and middle of a document that is turned, by its number alone; None: it is not."""
        rng = random.Random(f"fim/{self.wishes.seed}/{number}")
        if rng.random() >= self.wishes.fim or len(text) < 3:
            return None
        first, last = sorted(rng.sample(range(len(text) + 1), 2))
        return [text[:first], text[last:], text[first:last]]

    def _flush(self) -> None:
        """Write what is encoded, and where the next process would go on."""
        for part in PARTS:
            tokens = np.concatenate(self._buffers[part]) if self._buffers[part] else np.zeros(0, self._type)
            if not len(tokens):
                continue
            shards = self._state["shards"][part]
            name = f"{part}-{len(shards):05}.npy"
            write_tokens(self.folder / name, tokens)
            digest = hashlib.sha256(tokens.tobytes()).hexdigest()
            documents = len(self._buffers[part])
            shards.append({"file": name, "tokens": len(tokens), "documents": documents, "sha256": digest})
            self._buffers[part] = []
        if self._bands:
            write_tokens(self.folder / f"bands-{self._band_files:05}.npy", np.stack(self._bands))
            self._band_files += 1
            self._bands = []
        if self._pending is not None:
            done = self._pending
            saved = {"read": done.read, "kept": done.kept, "counts": done.counts, "band_files": self._band_files}
            write_json(self.folder / STATE, {**self._state, **saved, "encoded": self._encoded})
            self._saved = saved

    def _go_on(self) -> None:
        self._encoded = 0
        self._bands: list[NDArray[np.uint64]] = []
        self._pending: _Batch | None = None
        self._saved: dict[str, Any] = {}
        path = self.folder / STATE
        if not path.exists():
            if self.folder.exists() and any(self.folder.iterdir()):
                raise DataError(f"{self.folder} has something else in it; give an empty or a new folder")
            return
        try:
            state = json.loads(path.read_text(encoding="utf-8"))
            same = state["fingerprint"] == self._fingerprint
        except (OSError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(f"{path} is damaged ({error}); delete the folder and begin anew") from None
        if not same:
            raise DataError(
                f"{self.folder} was begun with other sources, another tokenizer or other options; give the same, or "
                "another folder"
            )
        self._encoded, self._band_files = state.pop("encoded"), state.pop("band_files")
        self._state = {**state, "counts": [Counter(c) for c in state["counts"]]}
        if self._known is not None:
            for number in range(self._band_files):
                for keys in np.load(self.folder / f"bands-{number:05}.npy", allow_pickle=False):
                    self._known.seen(keys)

    def _index(self) -> dict[str, Any]:
        state = {**self._state, **self._saved}
        license = self.wishes.license
        hashes = [None if s.is_dataset else d for s, d in zip(self.sources, self._digests, strict=True)]
        sources = [
            {"source": source.name, "bytes": source.bytes, "sha256": sha256, "license": license, **dict(counts)}
            for source, sha256, counts in zip(self.sources, hashes, state["counts"], strict=True)
        ]
        totals = {part: sum(shard["tokens"] for shard in state["shards"][part]) for part in PARTS}
        return {
            "format": FORMAT,
            "vocab_size": self.tokenizer.vocab_size,
            "tokenizer": self.tokenizer.digest(),
            "bos_id": self.tokenizer.bos_id,
            "documents": state["kept"],
            "tokens": totals,
            "validation_bytes": state["validation_bytes"],
            "wishes": asdict(self.wishes),
            "false_positive_duplicates": None if self._known is None else self._known.false_positive,
            "sources": sources,
            "shards": state["shards"],
        }


@dataclass(frozen=True)
class _Batch:
    """Documents, and what the state is once they are encoded: the thread that reads is further on by then.

    Args:
        documents: each, and whether it is held out.
        characters: of all documents read for it, those left out too.
        read, kept: documents up to its end.
        counts: of each source, up to its end.
        bands: of the documents read for it.
    """

    documents: list[tuple[Document, bool]]
    characters: int
    read: int
    kept: int
    counts: list[dict[str, int]]
    bands: list[NDArray[np.uint64]]


def _ahead(items: Iterator[Item], count: int) -> Generator[Item]:
    """Yield items that a thread draws ahead of time, `count` at the most: reading goes on while others are encoded."""
    ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(count)
    stopped = threading.Event()

    def offer(item: Item | None, error: BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put((item, error), timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def draw() -> None:
        try:
            for item in items:
                if not offer(item, None):
                    return
            offer(None, None)
        except BaseException as error:
            offer(None, error)

    thread = threading.Thread(target=draw, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is None:
                return
            yield item
    finally:
        stopped.set()
        thread.join()
