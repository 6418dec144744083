"""Conversations: a file of a teacher's replies to problems, with who the teacher was; it grows line by line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leanseek.errors import DataError
from leanseek.files import append_line
from leanseek.messages import Message, ToolCall, ToolSpec, as_openai


class Conversations:
    """A file of JSON lines: where the replies are from, then a line a problem with the replies that were kept.

    It may be written by hand too: lines with `messages`, and `tools` where there are some, as OpenAI's requests have
    them, thinking as reasoning_content, are all that is read for training.

    Args:
        path: of the file; made with the first line.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def describe(self, provenance: Mapping[str, Any]) -> None:
        """Write down who replies and how, once a sitting."""
        append_line(self.path, json.dumps({"provenance": dict(provenance)}, ensure_ascii=False))

    def add(
        self,
        key: str,
        about: Mapping[str, Any],
        kept: Sequence[Sequence[Message]],
        tools: Sequence[ToolSpec] = (),
    ) -> None:
        """Write down a problem that was asked, and its replies that are worth learning, if any.

        Args:
            key: of the problem, its task's name included.
            about: further facts for readers.
            kept: conversations, each ending with a reply.
            tools: that they could call.
        """
        rows = [[_plain(message) for message in messages] for messages in kept]
        offered = {"tools": [{"type": "function", "function": _plain_tool(tool)} for tool in tools]} if tools else {}
        append_line(self.path, json.dumps({"key": key, **about, "conversations": rows, **offered}, ensure_ascii=False))

    def keys(self) -> set[str]:
        """Return the problems that were asked already."""
        return {row["key"] for row in self._rows() if isinstance(row.get("key"), str)}

    def provenance(self) -> list[dict[str, Any]]:
        """Return where the replies are from, one entry a sitting."""
        return [row["provenance"] for row in self._rows() if isinstance(row.get("provenance"), dict)]

    def kept(self) -> list[tuple[list[Message], list[ToolSpec]]]:
        """Return all conversations that are worth learning, and the tools that each could call.

        Raises:
            DataError: there is no such file, or a line is not of this form.
        """
        if not self.path.is_file():
            raise DataError(f"{self.path}: there is no such file of replies")
        found = []
        for number, row in enumerate(self._rows(), 1):
            rows = row.get("conversations", [row["messages"]] if "messages" in row else [])
            try:
                tools = [_tool(one["function"]) for one in row.get("tools") or ()]
                found += [([_message(one) for one in messages], tools) for messages in rows]
            except (TypeError, KeyError, ValueError, AttributeError) as error:
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


def _plain(message: Message) -> dict[str, Any]:
    return as_openai(message) | ({} if message.name is None else {"name": message.name})


def _message(values: Mapping[str, Any]) -> Message:
    role = values["role"]
    content = (values.get("content") or "") if role == "assistant" else values["content"]
    texts = (content, *(values.get(key) or "" for key in ("reasoning_content", "tool_call_id", "name")))
    if role not in ("system", "user", "assistant", "tool"):
        raise ValueError(f"role {role!r}")
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("content, reasoning_content, tool_call_id and name are texts")
    calls = tuple(
        ToolCall(str(call["id"]), str(call["function"]["name"]), str(call["function"]["arguments"]))
        for call in values.get("tool_calls") or ()
    )
    return Message(
        role, content, values.get("reasoning_content"), calls, values.get("tool_call_id"), values.get("name")
    )


def _plain_tool(tool: ToolSpec) -> dict[str, Any]:
    return {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}


def _tool(values: Mapping[str, Any]) -> ToolSpec:
    return ToolSpec(str(values["name"]), str(values.get("description") or ""), dict(values.get("parameters") or {}))
