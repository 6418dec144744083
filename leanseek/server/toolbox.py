"""Toolbox: the functions that a reply may call, as clients list them, and the grammar that holds calls to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from leanseek.engine.grammar import terms_of
from leanseek.engine.request import Grammar
from leanseek.errors import EngineError, UsageError
from leanseek.messages import ToolCall, ToolSpec
from leanseek.server.refusal import ApiError
from leanseek.server.wire import Schema, Wire
from leanseek.tokens.chat import ChatFormat

MOST_TOOLS = 512
MOST_CALLS = 256

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,128}$")]
Arguments = Annotated[str, Field(max_length=1 << 20)]


class Function(Wire):
    """A function as OpenAI's tools have it."""

    name: Name
    description: str | None = None
    parameters: Schema | None = None
    strict: bool | None = None

    def spec(self) -> ToolSpec:
        """Return it as chat formats take it."""
        return ToolSpec(self.name, self.description or "", self.parameters or {}, bool(self.strict))


class Tool(Wire):
    """A tool; only functions are served."""

    type: Literal["function"]
    function: Function


class Called(Wire):
    """Which function a call was of, and with what."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    arguments: Arguments


class Call(Wire):
    """A tool call in the history."""

    id: Annotated[str, Field(max_length=256)]
    type: Literal["function"] = "function"
    function: Called

    def call(self) -> ToolCall:
        """Return it as chat formats take it."""
        return ToolCall(self.id, self.function.name, self.function.arguments)


@dataclass(frozen=True)
class Choice:
    """Whether tools are to be called.

    Args:
        kind: "none", "auto", "required", or "named", which means the one function.
        name: of that function.
        allowed: names of the functions that may be called, of those that the model is told of; None: all.
    """

    kind: Literal["none", "auto", "required", "named"] = "auto"
    name: str | None = None
    allowed: tuple[str, ...] | None = None


def _choice(value: Any) -> Any:
    """Read OpenAI's tool_choice; of its objects, both spellings: chats put what they mean one level deeper."""
    if value is None or isinstance(value, Choice):
        return value or Choice()
    if value in ("none", "auto", "required"):
        return Choice(value)
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "function" and (name := _named(value)) is not None:
        return Choice("named", name)
    if kind == "allowed_tools":
        inner = value.get("allowed_tools") if isinstance(value.get("allowed_tools"), dict) else value
        mode, tools = inner.get("mode", "auto"), inner.get("tools")
        names = [_named(tool) for tool in tools] if isinstance(tools, list) else []
        found = tuple(name for name in names if name is not None)
        if mode in ("auto", "required") and found and len(found) == len(names) <= MOST_TOOLS:
            return Choice(mode, allowed=found)
    raise PydanticCustomError(
        "tool_choice",
        '"none", "auto", "required", {"type": "function", "function": {"name": ...}} or {"type": "allowed_tools", '
        '"allowed_tools": {"mode": "auto" or "required", "tools": [functions]}} is accepted',
    )


def _named(value: Any) -> str | None:
    """Return the name of a function that is meant, if one is."""
    if not isinstance(value, dict) or value.get("type") != "function":
        return None
    function = value.get("function")
    name = function.get("name") if isinstance(function, dict) else value.get("name")
    return name if isinstance(name, str) else None


ToolChoice = Annotated[Any, BeforeValidator(_choice)]


@dataclass(frozen=True)
class Toolbox:
    """What a reply may call.

    Args:
        specs: the functions.
        choice: whether and which.
        several: whether one reply may have more than one call.
    """

    specs: tuple[ToolSpec, ...] = ()
    choice: Choice = Choice()
    several: bool = True

    @classmethod
    def of(cls, specs: Sequence[ToolSpec], choice: Choice | None = None, *, several: bool = True) -> Toolbox:
        """Check what belongs together.

        Raises:
            ApiError: two functions of one name, or a choice of one that is not there.
        """
        choice = choice or Choice()
        names = [spec.name for spec in specs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ApiError(422, f"tools: {twice!r} is there twice", code="invalid_parameter", param="tools")
        if choice.kind == "named" and choice.name not in names:
            message = f"tool_choice names the function {choice.name!r:.80}, which is not among the tools"
            raise ApiError(422, message, code="invalid_parameter", param="tool_choice")
        unknown = [name for name in choice.allowed or () if name not in names]
        if unknown:
            message = f"tool_choice allows the function {unknown[0]!r:.80}, which is not among the tools"
            raise ApiError(422, message, code="invalid_parameter", param="tool_choice")
        if choice.kind == "required" and not names:
            message = "tool_choice is 'required', but there are no tools; list some or leave it out"
            raise ApiError(422, message, code="invalid_parameter", param="tool_choice")
        return cls(tuple(specs), choice, several)

    @property
    def offered(self) -> tuple[ToolSpec, ...]:
        """The functions that the model is told of."""
        return () if self.choice.kind == "none" else self.specs

    def grammar(self, chat: ChatFormat, *, thinking: bool, form: Grammar | None = None) -> Grammar | None:
        """Return the grammar of a reply with these tools; None without any.

        Args:
            chat: of the model.
            thinking: whether the reply starts inside thinking.
            form: what a reply that calls nothing must be; None: anything.
        Raises:
            ApiError: the chat format has no tools, a function's parameters cannot be held to, or the form cannot stand
                beside calls.
        """
        if not self.offered:
            return None
        allowed = self.choice.allowed
        try:
            found = chat.guide(
                [spec for spec in self.offered if allowed is None or spec.name in allowed],
                forced=self.choice.kind == "required",
                name=self.choice.name,
                thinking=thinking,
                several=self.several,
                answer=terms_of(form, after_thinking=thinking) if form is not None else "",
            )
        except EngineError as error:
            raise ApiError(400, f"response_format: {error}", code="invalid_grammar", param="response_format") from None
        except UsageError as error:
            raise ApiError(400, str(error), code="invalid_tools", param="tools") from None
        return Grammar("tools" if found.marker else "lark", found.text, found.marker, after_thinking=thinking)
