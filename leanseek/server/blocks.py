"""Blocks: what answers Anthropic's requests, whole or event by event."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from leanseek.engine.request import Event
from leanseek.server.jsontext import named_frame
from leanseek.server.refusal import ApiError
from leanseek.server.reply import Reply, Said, whole_calls
from leanseek.server.usage import Usage

STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "insufficient_system_resource": "pause_turn",  # sent back, the message is gone on with
}
# Clients send it back with the thinking; nothing hangs on it here.
SIGNATURE = "leanseek"


class Blocks:
    """One reply as Anthropic's blocks: thinking, text, calls of tools, each opened, filled and closed in turn.

    Args:
        model: which answers.
        most_tokens: that the reply was to have; None: as many as there is room for.
        shows_thinking: whether thinking is shown, or only that there was some.
    """

    def __init__(self, model: str, most_tokens: int | None = None, *, shows_thinking: bool = True) -> None:
        self._id, self._model = f"msg_{secrets.token_hex(12)}", model
        self._most_tokens, self._shows_thinking = most_tokens, shows_thinking
        self._open: str | None = None  # the kind of the block that is open
        self._index = -1
        self._call = -1  # which call the open block is of

    def first(self, index: int, event: Event) -> None:
        """Nothing is known from it alone."""

    def whole(self, said: Sequence[Said], replies: Sequence[Reply], usage: Usage) -> dict[str, Any]:
        """Return the answer to a request that does not stream."""
        one, reply = said[0], replies[0]
        content: list[dict[str, Any]] = []
        if one.reasoning_content:
            thinking = one.reasoning_content if self._shows_thinking else ""
            content.append({"type": "thinking", "thinking": thinking, "signature": SIGNATURE})
        if one.content:
            content.append({"type": "text", "text": one.content})
        for call in whole_calls(one.tool_calls):
            content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": _object(call.arguments)})
        return {**self._message(usage), "content": content, **self._stop(reply)}

    def opening(self, usage: Usage) -> Iterator[bytes]:
        """Yield the message without its content."""
        yield named_frame({"type": "message_start", "message": self._message(usage)})
        yield named_frame({"type": "ping"})

    def piece(self, index: int, said: Said, usage: object = None) -> Iterator[bytes]:
        """Yield what one token said, in the block that it belongs to."""
        if said.reasoning_content:
            yield from self._begin("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            if self._shows_thinking:
                yield self._delta({"type": "thinking_delta", "thinking": said.reasoning_content})
        if said.content:
            yield from self._begin("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": said.content})
        for call in said.tool_calls:
            if call.id is not None:
                yield from self._end()
                self._call = call.index
                start = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
                yield from self._begin("tool_use", start)
            if call.arguments:
                yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})

    def ending(self, index: int, reply: Reply) -> Iterator[bytes]:
        """Yield the end of the open block."""
        yield from self._end()

    def closing(self, replies: Sequence[Reply], usage: Usage) -> Iterator[bytes]:
        """Yield why the message ended, what it took, and its end."""
        yield named_frame({"type": "message_delta", "delta": self._stop(replies[0]), "usage": usage.anthropic()})
        yield named_frame({"type": "message_stop"})

    def failure(self, error: ApiError) -> Iterator[bytes]:
        """Yield an error event."""
        yield named_frame(error.anthropic_envelope())

    def _begin(self, kind: str, block: dict[str, Any]) -> Iterator[bytes]:
        if self._open == kind and kind != "tool_use":
            return
        yield from self._end()
        self._open, self._index = kind, self._index + 1
        yield named_frame({"type": "content_block_start", "index": self._index, "content_block": block})

    def _end(self) -> Iterator[bytes]:
        if self._open is None:
            return
        if self._open == "thinking":
            yield self._delta({"type": "signature_delta", "signature": SIGNATURE})
        self._open = None
        yield named_frame({"type": "content_block_stop", "index": self._index})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return named_frame({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _message(self, usage: Usage) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage.anthropic(),
        }

    def _stop(self, reply: Reply) -> dict[str, Any]:
        if reply.stopped_by is not None and reply.finish_reason != "tool_calls":
            return {"stop_reason": "stop_sequence", "stop_sequence": reply.stopped_by}
        reason = STOP_REASONS.get(reply.finish_reason or "", reply.finish_reason)
        if reason == "max_tokens" and self._most_tokens is not None and reply.tokens < self._most_tokens:
            reason = "model_context_window_exceeded"
        return {"stop_reason": reason, "stop_sequence": None}


def model_info(name: str, created: int) -> dict[str, Any]:
    """Return a model as Anthropic's clients know it."""
    since = datetime.fromtimestamp(created, UTC).isoformat()
    return {"type": "model", "id": name, "display_name": name, "created_at": since}


def model_list(names: Sequence[str], created: int) -> dict[str, Any]:
    """Return the models as Anthropic's clients list them."""
    data = [model_info(name, created) for name in names]
    return {"data": data, "has_more": False, "first_id": names[0], "last_id": names[-1]}


def _object(text: str) -> dict[str, Any]:
    """Return a call's arguments; a call that was cut off has none that could be read."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
