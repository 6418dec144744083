"""Preferences: pairs of a better and a worse reply to the same conversation, from a user's JSONL file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanseek.data.dialogues import Dialogue, message_of, messages_of, read_rows, tools_of
from leanseek.errors import DataError
from leanseek.messages import Message


@dataclass(frozen=True)
class Preference:
    """Two conversations that differ in the last reply.

    Args:
        chosen: with the better one.
        rejected: with the worse one.
    """

    chosen: Dialogue
    rejected: Dialogue


def read_preferences(path: str | Path) -> list[Preference]:
    """Return the pairs of a file: lines of {"messages" or "prompt", "chosen", "rejected"}, and "tools" if any.

    What is replied to is a list of messages, or a text that the user says; a reply is a message, a list of that one,
    or a text.

    Raises:
        DataError: no such file, nothing in it, or a line that is not a pair; it names the line.
    """
    found = []
    for where, row in read_rows(path):
        given = [name for name in ("messages", "prompt") if name in row]
        if len(given) != 1:
            raise DataError(f"{where} must have either messages or prompt: what is replied to")
        asked = row[given[0]]
        before = [Message("user", asked)] if isinstance(asked, str) else messages_of(asked, f"{where}: {given[0]}")
        if before[-1].role == "assistant":
            raise DataError(f"{where}: {given[0]} ends with the assistant, but the replies are chosen and rejected")
        tools = tools_of(row, where)
        chosen, rejected = (_reply(row.get(name), f"{where}: {name}") for name in ("chosen", "rejected"))
        if chosen == rejected:
            raise DataError(f"{where}: chosen and rejected are the same, so neither is better")
        both = [Dialogue((*before, reply), tools, where) for reply in (chosen, rejected)]
        found.append(Preference(*both))
    return found


def _reply(given: Any, where: str) -> Message:
    if isinstance(given, str):
        return Message("assistant", given)
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if isinstance(given, list) or given is None:
        raise DataError(f"{where} must be one reply: a text, a message of the assistant, or a list of that one")
    reply = message_of(given, where)
    if reply.role != "assistant":
        raise DataError(f"{where}.role = {reply.role!r}: a reply is the assistant's")
    return reply
