"""Replays: how texts were sampled, so that a conversation's history is read back token by token as it was said."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

from leanseek.errors import CheckpointError
from leanseek.files import append_line, write_atomic
from leanseek.tokens.tokenizer import Tokenizer

MOST = 100_000
# Lines of the file beyond those that count, before it is written anew.
MOST_STALE = 50_000


class Replays:
    """Remembers the tokens of what was said, wherever encoding the text anew would give others.

    A model may say a text in other tokens than the tokenizer would choose. When the text comes back as history, those
    very tokens are wanted: the cache has them, and they are what the model said. Only ordinary tokens are remembered,
    so a text that a client sends can never become a special token by it.

    Args:
        tokenizer: of the model.
        path: a file that keeps them over a restart; None: memory alone.
        most: texts that are remembered; the oldest go first.
    Raises:
        CheckpointError: the file cannot be read or written.
    """

    def __init__(self, tokenizer: Tokenizer, path: Path | None = None, most: int = MOST) -> None:
        self._tokenizer, self._path, self._most = tokenizer, path, most
        self._ids: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self._lock = threading.Lock()
        self._lines = 0
        if path is not None:
            try:
                self._load(path)
            except OSError as error:
                raise CheckpointError(f"{path} cannot be used ({error.strerror or error})") from None

    def __len__(self) -> int:
        """Texts that are remembered."""
        return len(self._ids)

    def remember(self, ids: Sequence[int]) -> None:
        """Take the ids of a reply, special tokens among them."""
        for run in self._runs(ids):
            decoder = self._tokenizer.incremental()
            text = "".join(map(decoder.push, run)) + decoder.flush()
            if self._tokenizer.encode(text) != run:
                self._keep(text, tuple(run))

    def find(self, text: str) -> list[int] | None:
        """Return the tokens that a text was said in; None: those that encoding gives."""
        with self._lock:
            found = self._ids.get(text)
        return None if found is None else list(found)

    def _runs(self, ids: Sequence[int]) -> Iterator[list[int]]:
        run: list[int] = []
        for token in ids:
            if not self._tokenizer.is_special(token):
                run.append(token)
            elif run:
                yield run
                run = []
        if run:
            yield run

    def _keep(self, text: str, ids: tuple[int, ...]) -> None:
        with self._lock:
            if self._ids.get(text) == ids:
                self._ids.move_to_end(text)
                return
            self._ids[text] = ids
            self._ids.move_to_end(text)
            while len(self._ids) > self._most:
                self._ids.popitem(last=False)
            if self._path is not None:
                append_line(self._path, json.dumps([text, ids]))
                self._lines += 1
                if self._lines > len(self._ids) + MOST_STALE:
                    self._write(self._path)

    def _load(self, path: Path) -> None:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        for line in lines:
            try:
                text, ids = json.loads(line)
                run = [int(token) for token in ids]
            except (ValueError, TypeError):
                continue  # cut off when the power went
            inside = all(0 <= token < self._tokenizer.vocab_size for token in run)
            if isinstance(text, str) and inside and not any(map(self._tokenizer.is_special, run)):
                self._ids[text] = tuple(run)
                self._ids.move_to_end(text)
        while len(self._ids) > self._most:
            self._ids.popitem(last=False)
        self._lines = len(lines)

    def _write(self, path: Path) -> None:
        write_atomic(path, "".join(json.dumps([text, ids]) + "\n" for text, ids in self._ids.items()))
        self._lines = len(self._ids)
