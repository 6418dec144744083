"""Disk: blocks of the cache as files, found again after a restart; a damaged file is never more than a miss."""

from __future__ import annotations

import hashlib
import json
import os
import queue
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from leanseek.errors import EngineError
from leanseek.log import say

SUFFIX = ".latents"
MAGIC = b"leanseek latents 1\n"
LARGEST_HEADER = 1 << 20
# Blocks that wait to be written; beyond that new ones are left out, for a slow disk must not hold up replies.
MOST_WAITING = 512


@dataclass(frozen=True)
class Entry:
    """One file.

    Args:
        key: of this block: what it is found by.
        root, parent: of the scope, and of the block before it (the root's where it is the first).
        tokens: of this block.
        size: of the file, in bytes.
    """

    key: str
    root: str
    parent: str
    tokens: tuple[int, ...]
    size: int


class Disk:
    """A folder of blocks, bounded in size; what was used longest ago goes first.

    A key names everything that a block depends on: the model, the scope, and all tokens up to its end. Files are
    written beside themselves and renamed, and carry a checksum: after a crash they are whole or not there, and one
    that was damaged since is found out when it is read.

    Args:
        folder: made if needed; files of other models in it are left alone, and count towards the budget of none.
        model: whatever distinguishes these weights, their type and the form of a block from others.
        budget_bytes: most that the files may take.
    Raises:
        EngineError: the folder cannot be made or read.
    """

    def __init__(self, folder: str | Path, model: str, budget_bytes: int) -> None:
        self.folder = Path(folder) / hashlib.sha256(model.encode()).hexdigest()[:16]
        self.model, self.budget_bytes = model, budget_bytes
        self.damaged = self.left_out = self.written = 0
        self._entries: OrderedDict[str, Entry] = OrderedDict()  # oldest use first
        self._used_bytes = 0
        self._pending: set[str] = set()  # keys of blocks that are not written yet
        self._lock = threading.Lock()
        self._failed = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._scan()
        except OSError as error:
            raise EngineError(f"the cache folder {folder} cannot be used ({error.strerror or error})") from None
        self._waiting: queue.Queue[tuple[Entry, bytes | None] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._write_all, name="leanseek-cache-writer", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Blocks that are there."""
        return len(self._entries)

    @property
    def used_bytes(self) -> int:
        """What the files take."""
        return self._used_bytes

    def root_key(self, scope: str) -> str:
        """Return the key that a scope's texts begin with; the scope's name cannot be read from it."""
        return _digest(self.model.encode(), scope.encode())

    @staticmethod
    def key(parent: str, tokens: Sequence[int]) -> str:
        """Return the key of the block with these tokens after another."""
        return _digest(parent.encode(), json.dumps(list(tokens)).encode())

    def entries(self) -> Iterator[Entry]:
        """Yield the blocks that can be reached from their scope's root, each after the one before it."""
        followers: dict[str, list[Entry]] = {}
        with self._lock:
            for entry in self._entries.values():
                followers.setdefault(entry.parent, []).append(entry)
            waiting = [entry for entry in self._entries.values() if entry.parent == entry.root]
        while waiting:
            entry = waiting.pop()
            yield entry
            waiting += followers.get(entry.key, [])

    def put(self, root: str, parent: str, key: str, tokens: Sequence[int], payload: bytes) -> bool:
        """Have a block written in the background; whether it will be."""
        if key in self._entries or key in self._pending:
            return True
        if self._failed:
            return False
        try:
            self._pending.add(key)
            self._waiting.put_nowait((Entry(key, root, parent, tuple(tokens), 0), payload))
        except queue.Full:
            self._pending.discard(key)
            self.left_out += 1
            return False
        return True

    def drop(self, key: str) -> None:
        """Have a block deleted, in its turn."""
        self._waiting.put((Entry(key, "", "", (), 0), None))

    def get(self, key: str) -> bytes | None:
        """Read a block; None where it is not there (any more), or was damaged, in which case it is deleted."""
        if key in self._pending:
            self.flush()
        path = self._path(key)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            self._forget(key)
            return None
        parsed = _parse(data)
        if parsed is None or parsed[0].get("key") != key or _checksum(parsed[1]) != parsed[0].get("checksum"):
            self.damaged += 1
            self._delete(key)
            return None
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
        return parsed[1]

    def flush(self) -> None:
        """Wait until everything that was put is written."""
        self._waiting.join()

    def close(self) -> None:
        """Write what waits, and end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{SUFFIX}"

    def _scan(self) -> None:
        found: list[tuple[float, Entry]] = []
        for path in self.folder.iterdir():
            if path.name.startswith("."):  # half-written when the power went
                path.unlink(missing_ok=True)
                continue
            if path.suffix != SUFFIX:  # what others keep here, as the replays are
                continue
            entry = _entry_of(path)
            if entry is None:
                self.damaged += 1
                path.unlink(missing_ok=True)
            else:
                found.append((path.stat().st_mtime, entry))
        for _, entry in sorted(found, key=lambda one: one[0]):
            self._entries[entry.key] = entry
            self._used_bytes += entry.size

    def _write_all(self) -> None:
        while True:
            order = self._waiting.get()
            try:
                if order is None:
                    return
                entry, payload = order
                if payload is None:
                    self._delete(entry.key)
                else:
                    self._write(entry, payload)
            except OSError as error:  # the thread's boundary: serving goes on without the disk
                if not self._failed:
                    say(f"the cache folder {self.folder} takes no more blocks ({error.strerror or error})")
                self._failed = True
            finally:
                if order is not None:
                    self._pending.discard(order[0].key)
                self._waiting.task_done()

    def _write(self, entry: Entry, payload: bytes) -> None:
        header = {
            "key": entry.key,
            "root": entry.root,
            "parent": entry.parent,
            "tokens": entry.tokens,
            "checksum": _checksum(payload),
        }
        head = json.dumps(header).encode()
        data = MAGIC + len(head).to_bytes(4, "little") + head + payload
        self._make_room(len(data))
        temporary = self.folder / f".{entry.key}.{secrets.token_hex(4)}"
        try:
            temporary.write_bytes(data)
            os.replace(temporary, self._path(entry.key))
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        with self._lock:
            self._entries[entry.key] = Entry(entry.key, entry.root, entry.parent, entry.tokens, len(data))
            self._used_bytes += len(data)
            self.written += 1

    def _make_room(self, size: int) -> None:
        while self._used_bytes + size > self.budget_bytes and self._entries:
            self._delete(next(iter(self._entries)))

    def _delete(self, key: str) -> None:
        self._forget(key)
        self._path(key).unlink(missing_ok=True)

    def _forget(self, key: str) -> None:
        with self._lock:
            entry = self._entries.pop(key, None)
            self._used_bytes -= entry.size if entry is not None else 0


def _entry_of(path: Path) -> Entry | None:
    """Read a file's header; the payload is checked when it is used."""
    try:
        with path.open("rb") as file:
            head = file.read(len(MAGIC) + 4)
            size = int.from_bytes(head[len(MAGIC) :], "little")
            if head[: len(MAGIC)] != MAGIC or len(head) != len(MAGIC) + 4 or size > LARGEST_HEADER:
                return None
            header = json.loads(file.read(size))
            key, root, parent = (str(header[name]) for name in ("key", "root", "parent"))
            tokens = tuple(int(token) for token in header["tokens"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    named = path.name == f"{key}{SUFFIX}" and key == Disk.key(parent, tokens)
    return Entry(key, root, parent, tokens, path.stat().st_size) if named else None


def _parse(data: bytes) -> tuple[dict[str, object], bytes] | None:
    start = len(MAGIC) + 4
    size = int.from_bytes(data[len(MAGIC) : start], "little")
    if data[: len(MAGIC)] != MAGIC or len(data) < start + size or size > LARGEST_HEADER:
        return None
    try:
        header = json.loads(data[start : start + size])
    except ValueError:
        return None
    return (header, data[start + size :]) if isinstance(header, dict) else None


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\n".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:40]


def _checksum(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()
