"""Anthropic's requests: messages of blocks, checked by a schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from leanseek.messages import Message, ToolCall, ToolSpec
from leanseek.server.asked import Asked
from leanseek.server.openai import NOT_THINKING, Effort, Thinking
from leanseek.server.refusal import ApiError
from leanseek.server.toolbox import MOST_TOOLS, Choice, Name, Toolbox
from leanseek.server.wire import (
    MOST_MESSAGES,
    Drawing,
    ModelName,
    Schema,
    StopTexts,
    Text,
    TokenCount,
    Whole,
    Wire,
    shallow,
)
from leanseek.tokens.arguments import dumps

MOST_BLOCKS = 4096


class Block(Wire):
    """A part of a message: text, thinking, a call of a tool or its result. Others are refused."""

    type: Literal["text", "thinking", "redacted_thinking", "tool_use", "tool_result"]
    text: str = ""
    thinking: str = ""
    id: Annotated[str, Field(max_length=256)] = ""
    name: Annotated[str, Field(max_length=128)] = ""
    input: Annotated[dict[str, Any], BeforeValidator(shallow)] = {}
    tool_use_id: Annotated[str, Field(max_length=256)] = ""
    content: Text = None


def _blocks(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class Turn(Wire):
    """One message."""

    role: Literal["user", "assistant", "system"]
    content: Annotated[list[Block], Field(max_length=MOST_BLOCKS), BeforeValidator(_blocks)]

    def messages(self, names: dict[str, str]) -> list[Message]:
        """Return it as chat formats take it: results of tools are messages of their own, in front.

        Args:
            names: a call's id -> the tool's name; calls are added.
        """
        text = "".join(block.text for block in self.content if block.type == "text")
        if self.role == "system":
            return [Message("system", text)]
        if self.role == "assistant":
            calls = [
                ToolCall(block.id, block.name, dumps(block.input)) for block in self.content if block.type == "tool_use"
            ]
            names |= {call.id: call.name for call in calls}
            thoughts = [block.thinking for block in self.content if block.type == "thinking"]
            return [Message("assistant", text, "".join(thoughts) if thoughts else None, tuple(calls))]
        results = [block for block in self.content if block.type == "tool_result"]
        said = [
            Message("tool", block.content or "", None, (), block.tool_use_id, names.get(block.tool_use_id))
            for block in results
        ]
        return [*said, Message("user", text)] if text or not said else said


class ClientTool(Wire):
    """A function that the client carries out; Anthropic's own tools are not served."""

    name: Name
    type: Literal["custom"] | None = None
    description: str | None = None
    input_schema: Schema
    strict: bool | None = None

    def spec(self) -> ToolSpec:
        """Return it as chat formats take it."""
        return ToolSpec(self.name, self.description or "", self.input_schema, bool(self.strict))


class ToolUse(Wire):
    """Whether tools are to be called."""

    type: Literal["auto", "any", "tool", "none"] = "auto"
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    def choice(self) -> Choice:
        """Return it in OpenAI's words."""
        if self.type == "tool":
            return Choice("named", self.name or "")
        return Choice("required" if self.type == "any" else "none" if self.type == "none" else "auto")


class Metadata(Wire):
    """About the request."""

    user_id: Annotated[str, Field(max_length=4096)] | None = None


class OutputConfig(Wire):
    """How hard to try."""

    effort: Effort = None


def _thinking(value: Any) -> Any:
    """Take Anthropic's adaptive thinking for thinking; a budget has no meaning for the models served here."""
    if isinstance(value, dict) and value.get("type") == "adaptive":
        return {"type": "enabled"}
    return value


class CountRequest(Wire):
    """The body of POST /v1/messages/count_tokens."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=MOST_MESSAGES)]
    model: ModelName | None = None
    system: Text = None
    tools: Annotated[list[ClientTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: ToolUse | None = None
    thinking: Annotated[Thinking | None, BeforeValidator(_thinking)] = None
    output_config: OutputConfig | None = None
    metadata: Metadata | None = None

    @property
    def thinks(self) -> bool:
        """Whether the reply starts with thinking: on, as DeepSeek has it, unless the request says otherwise."""
        if self.messages[-1].role == "assistant":
            return False
        if self.thinking is not None:
            return self.thinking.type == "enabled"
        return self.effort != "none" and self.model != NOT_THINKING

    @property
    def effort(self) -> str | None:
        """How much to think, where the request says."""
        return self.output_config.effort if self.output_config is not None else None

    def drawn(self, drawing: Drawing, max_tokens: int | None) -> Asked:
        """Return what it wants.

        Args:
            drawing: how to draw.
            max_tokens: longest reply.
        Raises:
            ApiError: fields that do not go together.
        """
        names: dict[str, str] = {}
        messages = [Message("system", self.system)] if self.system else []
        for turn in self.messages:
            messages += turn.messages(names)
        use = self.tool_choice or ToolUse()
        toolbox = Toolbox.of(
            [tool.spec() for tool in self.tools or ()], use.choice(), several=not use.disable_parallel_tool_use
        )
        last = messages[-1]
        if last.role == "assistant" and last.tool_calls:
            message = "messages: the last one has tool_use; send its tool_result"
            raise ApiError(400, message, code="invalid_request", param="messages")
        return Asked(
            tuple(messages),
            drawing=drawing,
            model=self.model,
            thinks=self.thinks,
            effort=self.effort,
            max_tokens=max_tokens,
            toolbox=toolbox,
            goes_on=last.role == "assistant",
            scope=(self.metadata.user_id or "") if self.metadata is not None else "",
        )


class MessagesRequest(CountRequest):
    """The body of POST /v1/messages."""

    max_tokens: TokenCount
    stop_sequences: StopTexts = ()
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 20), Whole] | None = None

    def asked(self) -> Asked:
        """Return what it wants.

        Raises:
            ApiError: fields that do not go together.
        """
        drawing = Drawing(
            temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, stop=list(self.stop_sequences)
        )
        return self.drawn(drawing, self.max_tokens)
