"""Responses: OpenAI's newer requests, items in and items out, checked by a schema; nothing is stored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from leanseek.engine.request import Grammar
from leanseek.messages import Message, ToolCall
from leanseek.server.asked import Asked
from leanseek.server.forms import JsonSchema, ResponseFormat
from leanseek.server.openai import NOT_THINKING, Effort
from leanseek.server.refusal import ApiError
from leanseek.server.toolbox import MOST_TOOLS, Arguments, Function, Toolbox, ToolChoice
from leanseek.server.unserved import Only, Unserved
from leanseek.server.wire import (
    MOST_MESSAGES,
    Drawing,
    ModelName,
    Schema,
    Scope,
    TokenCount,
    UserId,
    Whole,
    Wire,
    join_text,
    text_schema,
)

TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")
# What `include` may ask for that can be there; the rest belongs to tools that are not.
LOGPROBS = "message.output_text.logprobs"


def _text(value: Any) -> Any:
    return join_text(value, TEXTS)


Text = Annotated[str | None, BeforeValidator(_text), WithJsonSchema(text_schema(*TEXTS))]
CallId = Annotated[str, Field(min_length=1, max_length=256)]


def _items(value: Any) -> Any:
    """Return a list of items, each with its type; a text is a message, and a message may leave its type out."""
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list):
        return value
    return [{"type": "message", **one} if isinstance(one, dict) else one for one in value]


class Said(Wire):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text


class Thought(Wire):
    """What was thought before what comes next; what is encrypted is not known here and left out."""

    type: Literal["reasoning"]
    content: Text = None
    summary: Text = None


class FunctionCall(Wire):
    """A call of a function."""

    type: Literal["function_call"]
    call_id: CallId
    name: Annotated[str, Field(min_length=1, max_length=128)]
    arguments: Arguments


class CallOutput(Wire):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: CallId
    output: Text


Item = Annotated[Said | Thought | FunctionCall | CallOutput, Field(discriminator="type")]


class FunctionTool(Function):
    """A function as this protocol lists it; OpenAI's own tools are not served."""

    type: Literal["function"]


class Reasoning(Wire):
    """How long to think."""

    effort: Effort = None
    summary: str | None = None


class TextFormat(Wire):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: Annotated[str, Field(max_length=256)] | None = None
    schema_: Annotated[Schema | None, Field(alias="schema")] = None
    strict: bool | None = None

    def grammar(self) -> Grammar | None:
        """Return what the answer must be; None: anything.

        Raises:
            ApiError: a schema is wanted and not there.
        """
        if self.type == "json_schema" and self.schema_ is None:
            raise ApiError(422, "text.format: a format of this type needs a schema", param="text.format")
        schema = None if self.schema_ is None else JsonSchema.model_validate({"schema": self.schema_})
        return ResponseFormat(type=self.type, json_schema=schema).grammar()


class TextOptions(Wire):
    """About the answer's text."""

    format: TextFormat | None = None
    verbosity: str | None = None


class ResponsesRequest(Drawing, Unserved):
    """The body of POST /v1/responses; how to draw is said as in chats where this protocol has no word for it."""

    input: Annotated[list[Item], Field(min_length=1, max_length=MOST_MESSAGES), BeforeValidator(_items)]
    model: ModelName | None = None
    instructions: str | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None
    max_output_tokens: TokenCount | None = None
    include: Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=64)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), Whole] | None = None
    stream: bool | None = None
    background: bool | None = None
    conversation: Any = None
    previous_response_id: str | None = None
    metadata: dict[str, str] | None = None
    user_id: UserId | None = None
    user: Scope | None = None
    safety_identifier: Scope | None = None
    # What of this protocol is not done here and would change the reply.
    prompt: Annotated[Any, Only("nothing is stored here; send the text as instructions and input")] = None
    context_management: Annotated[Any, Only("shorten the input; /tokenize counts", [])] = None
    moderation: Annotated[Any, Only("nothing is moderated")] = None

    @property
    def thinks(self) -> bool:
        """Whether the reply starts with thinking."""
        return self.effort != "none" and self.model != NOT_THINKING

    @property
    def effort(self) -> str | None:
        """How much to think, where the request says."""
        return self.reasoning.effort if self.reasoning is not None else None

    @property
    def logprobs(self) -> int | None:
        """How many of the likeliest tokens to tell beside each one of the answer; None: no log-probabilities at all."""
        wanted = self.top_logprobs is not None or LOGPROBS in (self.include or ())
        return (self.top_logprobs or 0) if wanted else None

    def messages(self) -> list[Message]:
        """Return the items as chat formats take them: what the assistant did in a row is one message."""
        said = [Message("system", self.instructions)] if self.instructions else []
        names: dict[str, str] = {}
        thought: str | None = None
        text, calls, speaking = "", list[ToolCall](), False

        def close() -> None:
            nonlocal thought, text, calls, speaking
            if speaking:
                said.append(Message("assistant", text, thought, tuple(calls)))
            thought, text, calls, speaking = None, "", [], False

        for item in self.input:
            if isinstance(item, Thought):
                close()
                thought = item.content or item.summary or ""
            elif isinstance(item, FunctionCall):
                calls.append(ToolCall(item.call_id, item.name, item.arguments))
                names[item.call_id], speaking = item.name, True
            elif isinstance(item, Said) and item.role == "assistant":
                if calls or (speaking and text):
                    close()
                text, speaking = item.content or "", True
            else:
                close()
                if isinstance(item, CallOutput):
                    said.append(Message("tool", item.output or "", None, (), item.call_id, names.get(item.call_id)))
                else:
                    said.append(Message("user" if item.role == "user" else "system", item.content or ""))
        close()
        return said

    def asked(self) -> Asked:
        """Return what it wants.

        Raises:
            ApiError: fields that do not go together, or what is not served.
        """
        refused = (
            ("previous_response_id", self.previous_response_id, "nothing is stored here; send all items as input"),
            ("conversation", self.conversation, "nothing is stored here; send all items as input"),
            ("background", self.background, "answers are not kept; leave it out, or stream"),
            ("n", (self.n or 1) > 1, "a response is one reply; ask /v1/chat/completions for several"),
        )
        for param, wanted, reason in refused:
            if wanted:
                raise ApiError(400, f"{param}: {reason}", code="unsupported_parameter", param=param)
        messages = self.messages()
        if not messages:
            raise ApiError(422, "input: a message is needed", code="invalid_parameter", param="input")
        specs = [tool.spec() for tool in self.tools or ()]
        toolbox = Toolbox.of(specs, self.tool_choice, several=self.parallel_tool_calls is not False)
        return Asked(
            tuple(messages),
            drawing=self,
            model=self.model,
            thinks=self.thinks,
            effort=self.effort,
            max_tokens=self.max_output_tokens,
            toolbox=toolbox,
            form=self.text.format.grammar() if self.text is not None and self.text.format is not None else None,
            logprobs=self.logprobs,
            scope=self.user_id or self.safety_identifier or self.user or "",
            param="input",
        )
