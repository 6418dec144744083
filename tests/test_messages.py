"""Messages are plain, frozen data."""

from __future__ import annotations

import dataclasses

import pytest

from leanseek.messages import Message, ToolCall, ToolSpec


def test_a_message_without_thinking_differs_from_one_with_empty_thinking():
    assert Message("assistant", "7") != Message("assistant", "7", "")
    assert Message("assistant", "7", "so") == Message("assistant", "7", reasoning_content="so")
    with pytest.raises(dataclasses.FrozenInstanceError):
        Message("user", "a").content = "b"


def test_a_message_is_as_plain_as_before_unless_tools_are_used():
    message = Message("assistant", "7")
    assert (message.tool_calls, message.tool_call_id, message.name) == ((), None, None)
    called = Message("assistant", "", tool_calls=(ToolCall("call_0", "f", '{"a": 1}'),))
    assert called != Message("assistant", "") and hash(called) == hash(dataclasses.replace(called))
    assert Message("tool", "7", tool_call_id="call_0", name="f").role == "tool"
    assert ToolSpec("f") == ToolSpec("f", "", {}, False)
    for frozen in (called.tool_calls[0], ToolSpec("f")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            frozen.name = "g"
