"""JSON text: how answers are written, and as events of a stream."""

from __future__ import annotations

import json
from typing import Any

DONE = b"data: [DONE]\n\n"
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def to_json(value: Any) -> bytes:
    """Write JSON as UTF-8; half a surrogate pair (a file name can hold one) stays an escape."""
    return _encode(value).encode("utf-8", "backslashreplace")


def frame(value: Any) -> bytes:
    """Return an object as one event."""
    return b"data: " + to_json(value) + b"\n\n"


def named_frame(value: dict[str, Any]) -> bytes:
    """Return an object as one event that bears its type's name, as Anthropic and OpenAI's Responses have it."""
    return b"event: " + str(value["type"]).encode() + b"\n" + frame(value)
