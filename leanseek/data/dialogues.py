"""Dialogues: a user's own conversations from a JSONL file, checked line by line, as training examples."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from leanseek.data.traces import Example
from leanseek.errors import DataError, UsageError, nearest
from leanseek.messages import Message, Role, ToolCall, ToolSpec
from leanseek.tokens.chat import ChatFormat

ROLES: tuple[str, ...] = get_args(Role)

Item = TypeVar("Item")


@dataclass(frozen=True)
class Dialogue:
    """A conversation of a file.

    Args:
        messages: the last one is the assistant's.
        tools: that it may call.
        where: file and line, for what is to be said of it.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    where: str


def read_dialogues(path: str | Path) -> list[Dialogue]:
    """Return the conversations of a file: lines of {"messages": [...], "tools": [...]}, as OpenAI's API has them.

    A message has a role, a content, and of the assistant reasoning_content and tool_calls too. What is said after
    the assistant's last turn teaches nothing and is left out.

    Raises:
        DataError: no such file, nothing in it, or a line that is not a conversation; it names the line.
    """
    found = []
    for where, row in read_rows(path):
        messages = messages_of(row.get("messages"), f"{where}: messages")
        turns = [place for place, message in enumerate(messages) if message.role == "assistant"]
        if not turns:
            raise DataError(f"{where} has no assistant turn, so there is nothing to learn from it")
        if turns[0] == 0:
            raise DataError(f"{where} begins with the assistant: it needs what it replies to before")
        found.append(Dialogue(tuple(messages[: turns[-1] + 1]), tools_of(row, where), where))
    return found


def read_rows(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a JSONL file, each after where it stands; empty lines are passed over.

    Raises:
        DataError: no such file, nothing in it, or a line that is not a JSON object in UTF-8.
    """
    path, found = Path(path), False
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; a .jsonl file is needed, a JSON object in each line")
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where, found = f"{path}:{number}", True
            try:
                row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{where} is not UTF-8 (byte {error.start} of the line)") from None
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(f"{where} is not JSON ({error}); each line must be an object of its own") from None
            if not isinstance(row, dict):
                raise DataError(f"{where} is not a JSON object, but {_kind(row)}")
            yield where, row
    if not found:
        raise DataError(f"{path} is empty; a JSON object in each line is needed")


def messages_of(given: Any, where: str) -> list[Message]:
    """Return a list of messages, checked.

    Raises:
        DataError: it is not one.
    """
    if not isinstance(given, list) or not given:
        raise DataError(f"{where} must be a list of messages, each with a role and a content; got {_kind(given)}")
    return [message_of(one, f"{where}[{place}]") for place, one in enumerate(given)]


def message_of(given: Any, where: str) -> Message:
    """Return a message, checked.

    Raises:
        DataError: it is not one.
    """
    if not isinstance(given, Mapping):
        raise DataError(f"{where} must be an object with a role and a content; got {_kind(given)}")
    role = given.get("role")
    if role not in ROLES:
        raise DataError(f"{where}.role = {role!r}: accepted are {', '.join(ROLES)}{nearest(str(role), ROLES)}")
    calls = given.get("tool_calls") or []
    if not isinstance(calls, list) or (calls and role != "assistant"):
        raise DataError(f"{where}.tool_calls must be a list, of an assistant's message")
    thinking = _text(given, "reasoning_content", where)
    if thinking is not None and role != "assistant":
        raise DataError(f"{where}.reasoning_content is the assistant's alone, not of the role {role}")
    content = _text(given, "content", where)
    if content is None and not calls:
        raise DataError(f"{where} has no content")
    return Message(
        role,
        content or "",
        thinking,
        tuple(_call(call, place, f"{where}.tool_calls[{place}]") for place, call in enumerate(calls)),
        _text(given, "tool_call_id", where),
        _text(given, "name", where),
    )


def tools_of(row: Mapping[str, Any], where: str) -> tuple[ToolSpec, ...]:
    """Return a line's tools, checked.

    Raises:
        DataError: they are not as OpenAI's API has them.
    """
    found, given = [], row.get("tools") or []
    if not isinstance(given, list):
        raise DataError(f"{where}: tools must be a list; got {_kind(given)}")
    for place, tool in enumerate(given):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise DataError(f'{where}: tools[{place}] must be {{"type": "function", "function": {{"name": ...}}}}')
        parameters = function.get("parameters") or {}
        if not isinstance(parameters, Mapping):
            raise DataError(f"{where}: tools[{place}].function.parameters must be a JSON schema")
        found.append(ToolSpec(function["name"], str(function.get("description") or ""), parameters))
    return tuple(found)


def examples_of(
    dialogues: Sequence[Dialogue], chat: ChatFormat, longest: int, *, cut: bool = False, last: bool = False
) -> list[Example]:
    """Return conversations as the model reads them; every turn of the assistant's is learnt, and nothing else.

    Args:
        dialogues: in order.
        chat: the model's format.
        longest: most tokens of one.
        cut: whether longer ones lose their end, in place of being refused.
        last: whether the last turn alone is learnt, after what the model would be given before it.
    Raises:
        DataError: a conversation that the format cannot say, that is longer, or of which no reply is left.
    """
    say = chat.example if last else chat.dialogue
    return [
        fitted(_said(lambda one=one: say(one.messages, tools=one.tools), one.where), one.where, longest, cut)
        for one in dialogues
    ]


def fitted(example: Example, where: str, longest: int, cut: bool) -> Example:
    """Return an example that is no longer than wanted.

    Raises:
        DataError: it is longer, or nothing to learn is left of it.
    """
    ids, learnt = example
    if len(ids) <= longest:
        return example
    if not cut:
        raise DataError(
            f"{where} has {len(ids)} tokens, but {longest} are the most here: shorten it, or have longer ones lose "
            "their end by --train.too_long cut"
        )
    if not any(learnt[:longest]):
        raise DataError(f"{where}: the first {longest} of its {len(ids)} tokens hold no reply: shorten what is before")
    return ids[:longest], learnt[:longest]


def set_aside(items: Sequence[Item], share: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Return what is learnt from and what is kept aside to measure by; the same seed always chooses the same.

    Args:
        items: all, in order.
        share: that is kept aside, one at least; of fewer than two items nothing is.
        seed: of the choice.
    """
    count = 0 if not share or len(items) < 2 else min(max(1, round(share * len(items))), len(items) - 1)
    chosen = set(random.Random(f"set aside/{seed}").sample(range(len(items)), count))
    return [x for i, x in enumerate(items) if i not in chosen], [x for i, x in enumerate(items) if i in chosen]


def _said(say: Callable[[], Example], where: str) -> Example:
    try:
        return say()
    except UsageError as error:
        raise DataError(f"{where}: {error}") from None


def _call(given: Any, place: int, where: str) -> ToolCall:
    function = given.get("function", given) if isinstance(given, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError(f'{where} must be {{"function": {{"name": ..., "arguments": ...}}}}')
    arguments = function.get("arguments", {})
    if isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    try:
        fits = isinstance(json.loads(arguments), dict)
    except (TypeError, json.JSONDecodeError):
        fits = False
    if not fits:
        raise DataError(f"{where}.function.arguments must be a JSON object, or its text")
    return ToolCall(str(given.get("id") or f"call_{place}"), function["name"], arguments)


def _text(given: Mapping[str, Any], name: str, where: str) -> str | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}.{name} must be a text; got {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    return "nothing" if value is None else "an empty list" if value == [] else type(value).__name__
