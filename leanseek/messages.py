"""Messages of a conversation: plain data shared by tokens, environments, RL and the server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class ToolCall:
    """A tool that the assistant wants used.

    Args:
        id: what the tool's result refers to. A model does not write it: who reads the reply gives it.
        name: of the tool.
        arguments: JSON text of an object, as the model wrote it; a model may get it wrong.
    """

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class ToolSpec:
    """A tool that the assistant may use.

    Args:
        name: without whitespace, quotes or angle brackets.
        description: what it does, for the model.
        parameters: JSON schema of the arguments, an object's.
        strict: whether the arguments must be held to the schema while they are sampled.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Args:
        role: who speaks.
        content: what is said; for the assistant, the answer after the thinking; for a tool, its result.
        reasoning_content: the assistant's thinking (between `<think>` and `</think>`);
            None where there was none.
        tool_calls: what the assistant wants done, after its content.
        tool_call_id: of a tool's result: which call it answers.
        name: of the tool whose result this is, where it is known.
    """

    role: Role
    content: str
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


def as_openai(message: Message) -> dict[str, Any]:
    """Return a message as OpenAI's protocol has it, with DeepSeek's `reasoning_content`; what it lacks is left out."""
    sent: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning_content is not None:
        sent["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        sent["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        sent["tool_call_id"] = message.tool_call_id
    return sent
