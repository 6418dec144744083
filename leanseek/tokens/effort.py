"""Effort: how a prompt asks for little thinking or much."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

from leanseek.messages import Message

# A scalar from 1 to 100 before the system text, and these for the three names: DeepSeek-V4.1's report.
BUDGETS = {"low": 50, "high": 75, "max": 100}


def with_effort(messages: Sequence[Message], effort: str | None) -> list[Message]:
    """Return a conversation whose system text begins with the effort that is wanted; None: as it is.

    A model heeds it that was trained with it (`efforts` of a recipe).

    Args:
        messages: of the conversation.
        effort: a key of BUDGETS, or None.
    """
    if effort is None:
        return list(messages)
    line = f"Reasoning Effort: {BUDGETS[effort]}"
    if messages and messages[0].role == "system":
        return [replace(messages[0], content=f"{line}\n\n{messages[0].content}"), *messages[1:]]
    return [Message("system", line), *messages]


def effort_of(key: str, efforts: Sequence[str]) -> str | None:
    """Return which of the efforts a problem's prompt asks for, always the same one; None of no efforts.

    Args:
        key: of the problem.
        efforts: keys of BUDGETS.
    """
    return efforts[zlib.crc32(key.encode()) % len(efforts)] if efforts else None


def heeded(effort: str | None, known: Sequence[str]) -> str | None:
    """Return the effort to ask a model for: the wanted one, else high, else the most that it was trained with.

    Args:
        effort: that is wanted; None: whatever is usual.
        known: that the model was trained with; none: it heeds no effort, and None is returned.
    """
    return next((one for one in (effort, "high") if one in known), known[-1] if known else None)
