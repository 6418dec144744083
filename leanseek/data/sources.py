"""Sources: a user's own text, a document at a time: .txt, .jsonl and .parquet files, and datasets that are at hand."""

from __future__ import annotations

import importlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from leanseek.errors import DataError

ENDINGS = (".txt", ".jsonl", ".parquet")
# Before the name of a dataset of the library of that name: a folder that it saved, or a name that it knows.
DATASET = "datasets:"
# Whether or not the file starts with a byte order mark.
ENCODING = "utf-8-sig"
# The longest document, in characters; what is longer is cut, at a line's end if there is one. It bounds memory.
LONGEST_DOCUMENT = 2_000_000
# The longest line of a .jsonl file, in characters: one document with all that stands beside its text.
LONGEST_LINE = 64_000_000
# Bytes that are read from a file at once.
READ_BYTES = 1 << 20


class Digest(Protocol):
    """What is told a file's bytes while they are read: any of hashlib's."""

    def update(self, data: memoryview, /) -> None:
        """Take the next bytes."""


def source_files(sources: Sequence[str]) -> list[Path]:
    """Return every file of text of the given files and folders, folders searched to any depth, sorted.

    Raises:
        DataError: a source does not exist or is another kind of file, or a folder has no such file.
    """
    files: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found = sorted(f for f in path.rglob("*") if f.suffix in ENDINGS and f.is_file())
            if not found:
                kinds = f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"
                raise DataError(f"{path} has no {kinds} file in it: put text there, or name another folder")
            files += found
        elif path.is_file():
            if path.suffix not in ENDINGS:
                raise DataError(
                    f"{path}: {', '.join(ENDINGS)} files are read, not {path.suffix or 'files without ending'}"
                )
            files.append(path)
        else:
            raise DataError(f"{path}: there is no such file or folder (data.sources)")
    return files


def read_documents(sources: Sequence[str]) -> Iterator[str]:
    """Yield documents: a .txt file is one, each line of a .jsonl file, each row of a table; blank ones are left out.

    Never more than a document is in memory; one longer than `LONGEST_DOCUMENT` becomes several.

    Args:
        sources: files, folders, and datasets as `datasets:NAME` or `datasets:NAME:SPLIT`.
    Raises:
        DataError: as `source_files`; or a file that is not UTF-8, a line that is not an object with a text, a table
            without a column of that name, or a library that is needed and not there.
    """
    for source in sources:
        if source.startswith(DATASET):
            yield from _pieces(_dataset_texts(source.removeprefix(DATASET)))
            continue
        for path in source_files([source]):
            yield from read_file(path)


def read_file(path: Path, digest: Digest | None = None) -> Iterator[str]:
    """Yield one file's documents; as `read_documents`.

    Args:
        path: of the file.
        digest: is told all its bytes by the time that the last document was given.
    """
    read = {".txt": _txt, ".jsonl": _jsonl, ".parquet": _parquet}[path.suffix]
    try:
        yield from _pieces(read(path, digest))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error})") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error})") from None


def _pieces(texts: Iterator[str]) -> Iterator[str]:
    """Cut what is too long for one document, and leave out what is blank."""
    for text in texts:
        start = 0
        while start < len(text):
            end = len(text)
            if end - start > LONGEST_DOCUMENT:
                end = start + LONGEST_DOCUMENT
                end = text.rfind("\n", start, end) + 1 or end
            piece = text[start:end]
            start = end
            if piece.strip():
                yield piece


class _Watched(io.RawIOBase):
    """A file that is read once, from its beginning to its end, and tells a digest all that it gives."""

    def __init__(self, path: Path, digest: Digest | None) -> None:
        self._file, self._digest = path.open("rb", buffering=0), digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        count = self._file.readinto(buffer) or 0
        if self._digest is not None:
            self._digest.update(memoryview(buffer)[:count])
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _opened(path: Path, digest: Digest | None) -> TextIO:
    return io.TextIOWrapper(io.BufferedReader(_Watched(path, digest), READ_BYTES), encoding=ENCODING)


def _txt(path: Path, digest: Digest | None) -> Iterator[str]:
    """One document, in parts where it is longer than one may be."""
    with _opened(path, digest) as file:
        rest = ""
        while block := file.read(LONGEST_DOCUMENT + 1 - len(rest)):
            rest += block
            if len(rest) > LONGEST_DOCUMENT:
                end = rest.rfind("\n", 0, LONGEST_DOCUMENT) + 1 or LONGEST_DOCUMENT
                yield rest[:end]
                rest = rest[end:]
        yield rest


def _jsonl(path: Path, digest: Digest | None) -> Iterator[str]:
    with _opened(path, digest) as file:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            if len(line) == LONGEST_LINE and not line.endswith("\n"):
                raise DataError(
                    f"{path}, line {number}: longer than {LONGEST_LINE:,} characters; is it JSON Lines, one object "
                    "a line?"
                )
            if line.strip():
                yield _text_of(line, f"{path}, line {number}")


def _parquet(path: Path, digest: Digest | None) -> Iterator[str]:
    if digest is not None:  # its columns are read by jumps, so its hash takes a reading of its own
        with path.open("rb", buffering=0) as file:
            while block := file.read(READ_BYTES):
                digest.update(memoryview(block))
    parquet = _library("pyarrow.parquet", f"{path}: reading Parquet files")
    arrow = importlib.import_module("pyarrow")
    try:
        with parquet.ParquetFile(path, memory_map=True) as table:
            if "text" not in table.schema_arrow.names:
                raise DataError(f"{path}: a column text is needed; it has {', '.join(table.schema_arrow.names)}")
            for batch in table.iter_batches(batch_size=256, columns=["text"]):
                for value in batch.column(0):
                    if (text := value.as_py()) is not None:
                        yield str(text)
    except arrow.ArrowException as error:
        raise DataError(f"{path}: not a Parquet file, or damaged ({error})") from None


def _dataset_texts(name: str) -> Iterator[str]:
    library = _library("datasets", f"{DATASET}{name}")
    name, _, split = name.partition(":")
    split = split or "train"
    try:
        if Path(name).is_dir() and any((Path(name) / f).is_file() for f in ("state.json", "dataset_dict.json")):
            found = library.load_from_disk(name)
            found = found[split] if isinstance(found, dict) else found
        else:
            found = library.load_dataset(name, split=split, streaming=True)
        rows = iter(found)
        first = next(rows, None)
    except (KeyError, ValueError, OSError) as error:
        raise DataError(f"{DATASET}{name}: the split {split!r} cannot be opened ({error})") from None
    while first is not None:
        text = first.get("text")
        if not isinstance(text, str):
            raise DataError(f"{DATASET}{name}: a column text is needed; it has {', '.join(map(str, first))}")
        yield text
        first = next(rows, None)


def _library(name: str, wanted_for: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise DataError(f"{wanted_for} needs {package}: pip install 'leanseek[data]'") from None


def _text_of(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where}: not valid JSON ({error})") from None
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise DataError(f'{where}: an object with a "text" is needed, such as {{"text": "..."}}')
    # JSON may bring half a surrogate pair, which is no character: it becomes U+FFFD.
    text: str = record["text"].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
