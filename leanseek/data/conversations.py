"""Conversations: a file of a teacher's replies to problems, with who the teacher was; it grows line by line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leanseek.errors import DataError
from leanseek.files import append_line
from leanseek.messages import Message


class Conversations:
    """A file of JSON lines: where the replies are from, then a line a problem with the replies that were kept.

    It may be written by hand too: lines with `messages` (role, content, and of the assistant reasoning_content) are
    all that is read for training.

    Args:
        path: of the file; made with the first line.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def describe(self, provenance: Mapping[str, Any]) -> None:
        """Write down who replies and how, once a sitting."""
        append_line(self.path, json.dumps({"provenance": dict(provenance)}, ensure_ascii=False))

    def add(self, key: str, about: Mapping[str, Any], kept: Sequence[Sequence[Message]]) -> None:
        """Write down a problem that was asked, and its replies that are worth learning, if any.

        Args:
            key: of the problem, its task's name included.
            about: further facts for readers.
            kept: conversations, each ending with the reply.
        """
        rows = [[_plain(message) for message in messages] for messages in kept]
        append_line(self.path, json.dumps({"key": key, **about, "conversations": rows}, ensure_ascii=False))

    def keys(self) -> set[str]:
        """Return the problems that were asked already."""
        return {row["key"] for row in self._rows() if isinstance(row.get("key"), str)}

    def provenance(self) -> list[dict[str, Any]]:
        """Return where the replies are from, one entry a sitting."""
        return [row["provenance"] for row in self._rows() if isinstance(row.get("provenance"), dict)]

    def kept(self) -> list[list[Message]]:
        """Return all conversations that are worth learning.

        Raises:
            DataError: there is no such file, or a line is not of this form.
        """
        if not self.path.is_file():
            raise DataError(f"{self.path}: there is no such file of replies")
        found = []
        for number, row in enumerate(self._rows(), 1):
            rows = row.get("conversations", [row["messages"]] if "messages" in row else [])
            try:
                found += [[_message(one) for one in messages] for messages in rows]
            except (TypeError, KeyError, ValueError) as error:
                raise DataError(
                    f"{self.path}: row {number} is not a conversation ({type(error).__name__}: {error}); needed are "
                    "messages of a role and a content, the assistant's last"
                ) from None
        return found

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Yield the lines; one that a crash cut off is left out."""
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return
        for line in text.split("\n"):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict):
                yield row


def _plain(message: Message) -> dict[str, str]:
    plain = {"role": message.role, "content": message.content}
    return plain if message.reasoning_content is None else {**plain, "reasoning_content": message.reasoning_content}


def _message(values: Mapping[str, Any]) -> Message:
    role, content, thinking = values["role"], values["content"], values.get("reasoning_content")
    if role not in ("system", "user", "assistant"):
        raise ValueError(f"role {role!r}")
    if not isinstance(content, str) or not (thinking is None or isinstance(thinking, str)):
        raise TypeError("content and reasoning_content are texts")
    return Message(role, content, thinking)
