"""Messages are plain, frozen data."""

from __future__ import annotations

import dataclasses

import pytest

from leanseek.messages import Message


def test_a_message_without_thinking_differs_from_one_with_empty_thinking():
    assert Message("assistant", "7") != Message("assistant", "7", "")
    assert Message("assistant", "7", "so") == Message("assistant", "7", reasoning_content="so")
    with pytest.raises(dataclasses.FrozenInstanceError):
        Message("user", "a").content = "b"
