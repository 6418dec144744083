"""Tokenize: requests for a text's tokens and for tokens' text, as vLLM has them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from leanseek.server.asked import Asked
from leanseek.server.openai import ChatMessage, ChatRequest
from leanseek.server.toolbox import MOST_TOOLS, Tool
from leanseek.server.wire import MOST_MESSAGES, MOST_TOKENS, ModelName, Whole, Wire
from leanseek.tokens.tokenizer import Tokenizer

TokenId = Annotated[int, Field(ge=0, lt=1 << 31), Whole]


def _needs(field: str) -> dict[str, Any]:
    """Return the schema of an object where this field is not null."""
    return {"required": [field], "properties": {field: {"not": {"type": "null"}}}}


class TokenizeRequest(Wire):
    """The body of POST /tokenize: a text, or a conversation as a chat request has it."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [_needs("prompt"), _needs("messages")]})

    model: ModelName | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    add_special_tokens: bool | None = None

    @model_validator(mode="after")
    def _has_one(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise PydanticCustomError("prompt", "either prompt or messages is needed")
        return self

    def asked(self) -> Asked | None:
        """Return the conversation; None: it is a text."""
        if self.messages is None:
            return None
        return ChatRequest.model_construct(messages=self.messages, tools=self.tools, model=self.model).asked()

    def text_ids(self, tokenizer: Tokenizer) -> list[int]:
        """Return the text's tokens, with what every text begins with unless that is not wanted."""
        start = [] if tokenizer.bos_id is None or self.add_special_tokens is False else [tokenizer.bos_id]
        return start + tokenizer.encode(self.prompt or "")


class DetokenizeRequest(Wire):
    """The body of POST /detokenize."""

    tokens: Annotated[list[TokenId], Field(max_length=MOST_TOKENS)]
    model: ModelName | None = None
