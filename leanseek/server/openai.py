"""OpenAI's chat requests with DeepSeek's additions, checked by a schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from leanseek.messages import Message
from leanseek.server.asked import Asked
from leanseek.server.forms import Formed
from leanseek.server.refusal import ApiError, parse_body
from leanseek.server.toolbox import MOST_CALLS, MOST_TOOLS, Call, Tool, Toolbox, ToolChoice
from leanseek.server.unserved import UnservedChat
from leanseek.server.wire import MOST_MESSAGES, Drawing, ModelName, Scope, Text, TokenCount, UserId, Whole, Wire

# What clients call how long to think -> DeepSeek's three levels. The models served here were taught one way of
# thinking, so all levels mean the same to them; "none" is no thinking.
EFFORTS = {
    "none": "none",
    "minimal": "low",
    "low": "low",
    "medium": "high",
    "high": "high",
    "xhigh": "high",
    "max": "max",
    "ultra": "max",
}
# DeepSeek's older names for one model, thinking or not.
NOT_THINKING = "deepseek-chat"


_SAID = {"content": {"not": {"type": "null"}}}
# What a message of each role cannot be without.
NEEDED = [
    {"properties": {"role": {"const": "assistant"}}},
    {"properties": {"role": {"enum": ["system", "developer", "user"]}, **_SAID}, "required": ["content"]},
    {
        "properties": {"role": {"const": "tool"}, **_SAID, "tool_call_id": {"not": {"type": "null"}}},
        "required": ["content", "tool_call_id"],
    },
]


class ChatMessage(Wire):
    """One message of the conversation; which earlier thinking the model sees again, its chat format says."""

    model_config = ConfigDict(json_schema_extra={"anyOf": NEEDED})

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text = None
    reasoning_content: str | None = None
    prefix: bool | None = None
    tool_calls: Annotated[list[Call], Field(max_length=MOST_CALLS)] | None = None
    tool_call_id: Annotated[str, Field(max_length=256)] | None = None

    @model_validator(mode="after")
    def _has_content(self) -> ChatMessage:
        if self.content is None and self.role != "assistant":
            raise PydanticCustomError("content", "a message of this role needs content")
        if self.role == "tool" and self.tool_call_id is None:
            raise PydanticCustomError("tool_call_id", "a tool's message needs the tool_call_id that it answers")
        return self


class Thinking(Wire):
    """DeepSeek's switch: whether the reply starts with thinking."""

    type: Literal["enabled", "disabled"] = "enabled"


class StreamOptions(Wire):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # as vLLM calls it

    @property
    def live(self) -> bool:
        """Whether each chunk with text tells what the request took until then."""
        return bool(self.include_usage and self.continuous_usage_stats)


def check_effort(value: Any) -> Any:
    """Return DeepSeek's level for what a client calls it; whole numbers from 1 to 100 are levels too."""
    if value is None or (isinstance(value, str) and value in EFFORTS):
        return None if value is None else EFFORTS[value]
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 100:
        return "low" if value <= 50 else "high" if value <= 75 else "max"
    raise PydanticCustomError("effort", f"{', '.join(EFFORTS)} or a number from 1 to 100 is accepted")


Effort = Annotated[Literal["none", "low", "high", "max"] | None, BeforeValidator(check_effort)]


class TemplateArguments(Wire):
    """What vLLM's clients tell a chat template: whether to think, as Qwen's and DeepSeek's call it."""

    enable_thinking: bool | None = None
    thinking: bool | None = None


class ChatRequest(Drawing, Formed, UnservedChat):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES)]
    model: ModelName | None = None
    thinking: Thinking | None = None
    reasoning_effort: Effort = None
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20), Whole] | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: TemplateArguments | None = None
    continue_final_message: bool | None = None
    user_id: UserId | None = None
    user: Scope | None = None
    safety_identifier: Scope | None = None
    cache_salt: Scope | None = None

    @property
    def thinks(self) -> bool:
        """Whether the reply starts with thinking: on, unless the request or the model's name says otherwise."""
        last = self.messages[-1]
        if self.goes_on and last.reasoning_content is None:
            return False
        if self.thinking is not None:
            return self.thinking.type == "enabled"
        told = self.chat_template_kwargs
        if told is not None and (told.enable_thinking is False or told.thinking is False):
            return False
        return self.reasoning_effort != "none" and self.model != NOT_THINKING

    @property
    def effort(self) -> str:
        """How long to think: "none", "low", "high" or "max"."""
        return (self.reasoning_effort or "high") if self.thinks else "none"

    @property
    def goes_on(self) -> bool:
        """Whether the last message is to be gone on with."""
        last = self.messages[-1]
        return last.role == "assistant" and bool(last.prefix or self.continue_final_message)

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def conversation(self) -> list[Message]:
        """Return the messages as the chat format takes them; a developer speaks as the system."""
        said, names = [], dict[str, str]()
        for one in self.messages:
            role = "system" if one.role == "developer" else one.role
            calls = tuple(call.call() for call in one.tool_calls or ()) if role == "assistant" else ()
            names |= {call.id: call.name for call in calls}
            thought = one.reasoning_content if role == "assistant" else None
            answers = one.tool_call_id if role == "tool" else None
            said.append(Message(role, one.content or "", thought, calls, answers, names.get(answers or "")))
        return said

    def asked(self) -> Asked:
        """Return what it wants.

        Raises:
            ApiError: fields that do not go together.
        """
        if self.top_logprobs and not self.logprobs:
            message = f"top_logprobs = {self.top_logprobs}: needs logprobs = true"
            raise ApiError(422, message, code="invalid_parameter", param="top_logprobs")
        specs = [tool.function.spec() for tool in self.tools or ()]
        toolbox = Toolbox.of(specs, self.tool_choice, several=self.parallel_tool_calls is not False)
        return Asked(
            tuple(self.conversation()),
            drawing=self,
            model=self.model,
            thinks=self.thinks,
            effort=self.reasoning_effort,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            toolbox=toolbox,
            form=self.form(),
            goes_on=self.goes_on,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            scope=self.user_id or self.cache_salt or self.safety_identifier or self.user or "",
        )


def parse_chat_request(body: bytes) -> ChatRequest:
    """Read and check a request's body.

    Raises:
        ApiError: 400 if it is not a JSON object, 422 if a field is wrong.
    """
    return parse_body(ChatRequest, body, "messages")
