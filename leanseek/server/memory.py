"""Memory: what replies with tool calls were, by the calls' ids, so that history comes back as it was said."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

from leanseek.messages import Message, ToolCall

MOST_CALLS = 8192
MOST_CHARACTERS = 64 << 20


class Memory:
    """Mends what clients change of a reply that they send back.

    Some write a call's arguments anew, and many leave the thinking out, which a tool loop needs and whose lack makes
    the cache miss. Ids cannot be guessed, so nobody gets at another's thinking by them. One event loop uses it.

    Args:
        most_calls, most_characters: how much is remembered; the oldest goes first.
    """

    def __init__(self, most_calls: int = MOST_CALLS, most_characters: int = MOST_CHARACTERS) -> None:
        self._most_calls, self._most_characters = most_calls, most_characters
        self._known: OrderedDict[str, tuple[ToolCall, str]] = OrderedDict()
        self._characters = 0

    def __len__(self) -> int:
        """Calls that are remembered."""
        return len(self._known)

    def remember(self, thought: str, calls: Sequence[ToolCall]) -> None:
        """Take what a reply thought, and its calls."""
        for call in calls:
            self._known[call.id] = (call, thought)
            self._characters += len(call.arguments) + len(thought)
        while self._known and (len(self._known) > self._most_calls or self._characters > self._most_characters):
            _, (call, before) = self._known.popitem(last=False)
            self._characters -= len(call.arguments) + len(before)

    def restore(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Return a conversation with arguments as they were written, and thinking where none was sent."""
        return tuple(self._restored(one) if one.tool_calls else one for one in messages)

    def _restored(self, message: Message) -> Message:
        calls, thought = [], message.reasoning_content
        for call in message.tool_calls:
            known, before = self._known.get(call.id, (call, None))
            same = known.name == call.name and _value(known.arguments) == _value(call.arguments)
            calls.append(known if same else call)
            if not thought and same and before:
                thought = before
        return replace(message, tool_calls=tuple(calls), reasoning_content=thought)


def _value(arguments: str) -> object:
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
