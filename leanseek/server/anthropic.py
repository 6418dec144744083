"""Anthropic's requests: messages of blocks, checked by a schema."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from leanseek.engine.request import Grammar
from leanseek.messages import Message, ToolCall, ToolSpec
from leanseek.server.asked import Asked
from leanseek.server.openai import NOT_THINKING, Effort
from leanseek.server.refusal import ApiError
from leanseek.server.toolbox import MOST_TOOLS, Choice, Name, Toolbox
from leanseek.server.unserved import Only
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


class TextBlock(Wire):
    """Text."""

    type: Literal["text"]
    text: str


class ThinkingBlock(Wire):
    """What was thought; its signature means nothing here."""

    type: Literal["thinking"]
    thinking: str


class RedactedThinking(Wire):
    """Another server's secret, which is left out."""

    type: Literal["redacted_thinking"]


class ToolUse(Wire):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: Annotated[str, Field(min_length=1, max_length=256)]
    name: Annotated[str, Field(min_length=1, max_length=128)]
    input: Annotated[dict[str, Any], BeforeValidator(shallow)]


class ToolResult(Wire):
    """What a call gave."""

    type: Literal["tool_result"]
    tool_use_id: Annotated[str, Field(min_length=1, max_length=256)]
    content: Text = None


Block = Annotated[TextBlock | ThinkingBlock | RedactedThinking | ToolUse | ToolResult, Field(discriminator="type")]


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
        text = "".join(block.text for block in self.content if isinstance(block, TextBlock))
        if self.role == "system":
            return [Message("system", text)]
        if self.role == "assistant":
            calls = [
                ToolCall(block.id, block.name, dumps(block.input))
                for block in self.content
                if isinstance(block, ToolUse)
            ]
            names |= {call.id: call.name for call in calls}
            thought = "".join(block.thinking for block in self.content if isinstance(block, ThinkingBlock))
            return [Message("assistant", text, thought or None, tuple(calls))]
        results = [block for block in self.content if isinstance(block, ToolResult)]
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


class ToolUsage(Wire):
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


class OutputFormat(Wire):
    """A schema that the answer must keep to."""

    type: Literal["json_schema"]
    schema_: Annotated[Schema, Field(alias="schema")]


class OutputConfig(Wire):
    """How hard to try, and what the answer must be."""

    effort: Effort = None
    format: OutputFormat | None = None


class Thinking(Wire):
    """Whether the reply starts with thinking, and shows it; a budget has no meaning for the models served here."""

    type: Literal["enabled", "adaptive", "disabled"]
    display: Literal["summarized", "omitted"] | None = None


class CountRequest(Wire):
    """The body of POST /v1/messages/count_tokens."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=MOST_MESSAGES)]
    model: ModelName | None = None
    system: Text = None
    tools: Annotated[list[ClientTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: ToolUsage | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    metadata: Metadata | None = None
    # What of this protocol is not done here and would change the reply.
    container: Annotated[Any, Only("nothing is run here; give tools")] = None
    mcp_servers: Annotated[Any, Only("the server asks nobody else; give tools", [])] = None
    context_management: Annotated[Any, Only("shorten the messages; count_tokens counts")] = None
    compaction: Annotated[Any, Only("shorten the messages; count_tokens counts")] = None
    output_format: Annotated[Any, Only("give output_config.format")] = None

    @property
    def thinks(self) -> bool:
        """Whether the reply starts with thinking: on, as DeepSeek has it, unless the request says otherwise."""
        if self.messages[-1].role == "assistant":
            return False
        if self.thinking is not None:
            return self.thinking.type != "disabled"
        return self.effort != "none" and self.model != NOT_THINKING

    @property
    def shows_thinking(self) -> bool:
        """Whether the answer shows what was thought, or only that something was."""
        return self.thinking is None or self.thinking.display != "omitted"

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
        use = self.tool_choice or ToolUsage()
        toolbox = Toolbox.of(
            [tool.spec() for tool in self.tools or ()], use.choice(), several=not use.disable_parallel_tool_use
        )
        last = messages[-1]
        if last.role == "assistant" and last.tool_calls:
            message = "messages: the last one has tool_use; send its tool_result"
            raise ApiError(400, message, code="invalid_request", param="messages")
        form = self.output_config.format if self.output_config is not None else None
        return Asked(
            tuple(messages),
            drawing=drawing,
            model=self.model,
            thinks=self.thinks,
            effort=self.effort,
            max_tokens=max_tokens,
            toolbox=toolbox,
            form=Grammar("json_schema", json.dumps(form.schema_)) if form is not None else None,
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
