"""OpenAI's chat requests with DeepSeek's additions, checked by a schema, and the errors that refuse them."""

from __future__ import annotations

import json
import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from leanseek.engine.request import SamplingParams
from leanseek.errors import EngineError, ServerError
from leanseek.messages import Message
from leanseek.server.defaults import MinP, SamplingDefaults, Temperature, TopK, TopP

# Every number that a client may send has a bound: an unbounded n has stopped other servers (CVE-2026-34756).
MOST_MESSAGES = 4096
MOST_TOKENS = 1 << 20
MOST_REPLIES = 128
MOST_STOPS = 16
STOP_CHARACTERS = 256
# The engine adds the reply's index to a seed and keeps it in 64 bits.
SEED_BITS = (1 << 62) - 1

ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class ApiError(ServerError):
    """A failure that a client is told of.

    Args:
        status: of the HTTP answer.
        message: what is wrong, and what is accepted.
        code: short name for programs; None where the status says it all.
        param: the field that is wrong, if it is one.
        headers: to answer with.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = headers or {}

    def envelope(self) -> dict[str, Any]:
        """Return the error as OpenAI's clients expect it."""
        kind = ERROR_TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class Wire(BaseModel):
    """A part of a request: types as JSON has them, nothing coerced; fields that are not known are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)


def _text(value: Any) -> Any:
    """Join a list of text parts into one text."""
    if not isinstance(value, list):
        return value
    parts = []
    for part in value:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise PydanticCustomError("part", 'a text or a list of {"type": "text", "text": ...} is accepted')
        parts.append(text)
    return "".join(parts)


def _stops(value: Any) -> Any:
    """Make a tuple of one stop text, several, or none."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


class ChatMessage(Wire):
    """One message of the conversation; an assistant's thinking is accepted and not shown to the model again."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str | None, BeforeValidator(_text)] = None
    reasoning_content: str | None = None
    prefix: bool | None = None

    @model_validator(mode="after")
    def _has_content(self) -> ChatMessage:
        if self.content is None and self.role != "assistant":
            raise PydanticCustomError("content", "a message of this role needs content")
        return self


class Thinking(Wire):
    """DeepSeek's switch: whether the reply starts with thinking."""

    type: Literal["enabled", "disabled"] = "enabled"


class StreamOptions(Wire):
    """What a stream carries besides text."""

    include_usage: bool | None = None


class ResponseFormat(Wire):
    """The form of the answer; only plain text is served yet."""

    type: str = "text"


StopText = Annotated[str, Field(min_length=1, max_length=STOP_CHARACTERS)]
StopTexts = Annotated[tuple[StopText, ...], Field(max_length=MOST_STOPS), BeforeValidator(_stops)]
TokenCount = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class ChatRequest(Wire):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES)]
    model: Annotated[str, Field(max_length=512)] | None = None
    thinking: Thinking | None = None
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_REPLIES)] | None = None
    stop: StopTexts = ()
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, float] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    response_format: ResponseFormat | None = None

    @property
    def thinks(self) -> bool:
        """Whether the reply starts with thinking."""
        return self.thinking is None or self.thinking.type == "enabled"

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def conversation(self) -> list[Message]:
        """Return the messages as the chat format takes them; a developer speaks as the system."""
        said = []
        for one in self.messages:
            role = "system" if one.role == "developer" else one.role
            said.append(Message(role, one.content or ""))
        return said

    def sampling(self, defaults: SamplingDefaults, room_tokens: int) -> SamplingParams:
        """Return how to draw the reply.

        Args:
            defaults: the model's, for what the request does not say.
            room_tokens: what the context leaves for the reply.
        Raises:
            ApiError: a value that the engine does not accept.
        """

        def given(value: float | None, default: float) -> float:
            return default if value is None else value

        seed = secrets.randbits(48) if self.seed is None else self.seed & SEED_BITS
        asked_tokens = self.max_completion_tokens or self.max_tokens or room_tokens
        try:
            return SamplingParams(
                max_tokens=min(asked_tokens, room_tokens),
                temperature=given(self.temperature, defaults.usual_temperature),
                # OpenAI accepts 0, which leaves the most likely token alone.
                top_p=max(given(self.top_p, defaults.top_p), 1e-6),
                top_k=max(int(given(self.top_k, defaults.top_k)), 0),
                min_p=given(self.min_p, defaults.min_p),
                n=self.n or 1,
                seed=seed,
                stop=self.stop,
                logprobs=0 if self.logprobs else None,
            )
        except EngineError as error:
            raise ApiError(422, str(error), code="invalid_parameter") from None


def parse_chat_request(body: bytes) -> ChatRequest:
    """Read and check a request's body.

    Raises:
        ApiError: 400 if it is not a JSON object or asks for what is not served, 422 if a field is wrong.
    """
    try:
        request = ChatRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None
    _refuse_what_is_not_served(request)
    return request


def _refusal(error: ValidationError) -> ApiError:
    problems = error.errors(include_url=False, include_context=False)
    first = problems[0]
    if first["type"] == "json_invalid":
        return ApiError(
            400, f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}", code="invalid_json"
        )
    if not first["loc"]:
        return ApiError(400, "the body must be a JSON object with messages", code="invalid_request")
    param = ".".join(str(part) for part in first["loc"])
    got = "" if isinstance(first["input"], dict | list | tuple) else f" = {json.dumps(first['input'])[:80]}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return ApiError(422, f"{param}{got}: {first['msg'].lower()}{more}", code="invalid_parameter", param=param)


def _refuse_what_is_not_served(request: ChatRequest) -> None:
    """Refuse a request for what would change the reply and is not there yet; ignoring it would deceive."""
    last = request.messages[-1]
    # In thinking mode DeepSeek's own server takes penalties and ignores them.
    penalties = 0 if request.thinks else (request.presence_penalty or request.frequency_penalty)
    refused = (
        ("top_logprobs", request.top_logprobs, "only the chosen tokens' log-probabilities are served: 0"),
        ("presence_penalty", penalties, "penalties are not served: 0 is accepted"),
        ("logit_bias", request.logit_bias, "no bias of logits is served"),
        ("tools", request.tools and request.tool_choice != "none", "tool calls are not served"),
        (
            "response_format",
            request.response_format is not None and request.response_format.type != "text",
            'only {"type": "text"} is served',
        ),
        ("messages", last.role == "assistant" and last.prefix, "going on with an assistant's message is not served"),
    )
    for param, wanted, reason in refused:
        if wanted:
            raise ApiError(400, f"{param}: {reason}", code="unsupported_parameter", param=param)
