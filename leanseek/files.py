"""Files written whole or not at all: a temporary file beside the target, fsync, rename."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Args:
        path: the file; its folder is made if needed.
        data: bytes, or text (UTF-8).
    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    with new_file(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def new_file(path: str | Path) -> Iterator[BinaryIO]:
    """Give a file to write that takes `path`'s place once the block ends without an error.

    Args:
        path: the file; its folder is made if needed.
    Raises:
        OSError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def append_line(path: str | Path, text: str) -> None:
    """Append one line and hand it to the operating system at once; a last line that a crash cut off is ended first."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        broken = False
        if file.tell():
            file.seek(-1, os.SEEK_END)
            broken = file.read(1) != b"\n"
        file.write((b"\n" if broken else b"") + text.encode() + b"\n")


def sync_folder(path: str | Path) -> None:
    """Make a folder's entries (renames, new files) durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder to fill, which takes `path`'s place once the block ends without an error.

    Args:
        path: the folder that is made; one that exists is replaced.
    Raises:
        OSError: the disk is full or the folder cannot be written; what was at `path` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        for file in temporary.rglob("*"):
            sync_folder(file)  # files too: fsync takes any descriptor
        sync_folder(temporary)
        if path.exists():
            old = temporary.with_name(temporary.name + ".old")
            os.replace(path, old)
            try:
                os.replace(temporary, path)
            except BaseException:
                os.replace(old, path)
                raise
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
