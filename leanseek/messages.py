"""Messages of a conversation: plain data shared by tokens, environments, RL and the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Args:
        role: who speaks.
        content: what is said; for the assistant, the answer after the thinking.
        reasoning_content: the assistant's thinking (between `<think>` and `</think>`);
            None where there was none.
    """

    role: Role
    content: str
    reasoning_content: str | None = None
