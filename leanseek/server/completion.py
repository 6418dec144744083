"""Completion: the objects that answer a chat request, whole or chunk by chunk, as OpenAI and DeepSeek spell them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from leanseek.engine.request import Event
from leanseek.server.jsontext import DONE, frame, to_json
from leanseek.server.logprobs import BytesOf, entries, no_bytes
from leanseek.server.refusal import ApiError
from leanseek.server.reply import Reply, Said, whole_calls
from leanseek.server.usage import Usage
from leanseek.tokens.chat import ToolCallDelta


@dataclass(frozen=True)
class Completion:
    """What all objects of one answer share, and how they are built.

    Args:
        model, fingerprint: which model answers.
        completion_id, created: the same in every chunk.
        thinks: whether the message has a reasoning_content.
        with_logprobs: whether choices carry log-probabilities.
        with_usage: whether chunks have a usage field (null but in the last).
        live_usage: whether that of a chunk with text says what the request took until then.
        choices: replies there will be.
        bytes_of: gives a token's bytes, for the most likely ones.
    """

    model: str
    fingerprint: str
    completion_id: str
    created: int
    thinks: bool = True
    with_logprobs: bool = False
    with_usage: bool = False
    live_usage: bool = False
    choices: int = 1
    bytes_of: BytesOf = no_bytes

    @classmethod
    def begin(cls, model: str, fingerprint: str, **options: Any) -> Completion:
        """Give an answer its id and time."""
        return cls(model, fingerprint, f"chatcmpl-{secrets.token_hex(16)}", int(time.time()), **options)

    def whole(self, said: Sequence[Said], replies: Sequence[Reply], usage: Usage) -> dict[str, Any]:
        """Return the answer to a request that does not stream."""
        built = []
        for index, (one, reply) in enumerate(zip(said, replies, strict=True)):
            calls = whole_calls(one.tool_calls)
            message: dict[str, Any] = {"role": "assistant", "content": one.content, "refusal": None}
            if self.thinks:
                message["reasoning_content"] = one.reasoning_content
            if calls:
                message["content"] = one.content or None
                message["tool_calls"] = [
                    {
                        "id": call.id,
                        "type": "function",
                        "function": {"name": call.name, "arguments": call.arguments},
                    }
                    for call in calls
                ]
            choice = {"index": index, "message": message, "logprobs": self._logprobs(one)}
            built.append({**choice, "finish_reason": reply.finish_reason})
        return {**self._head("chat.completion"), "choices": built, "usage": usage.openai()}

    def first(self, index: int, event: Event) -> None:
        """Nothing is known from it alone."""

    def opening(self, usage: Usage) -> Iterator[bytes]:
        """Yield each reply's first chunk: who speaks."""
        for index in range(self.choices):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, said: Said, usage: Callable[[], Usage] | None = None) -> Iterator[bytes]:
        """Yield the chunk for what one token said, if that is anything."""
        delta: dict[str, Any] = {}
        if said.reasoning_content:
            delta["reasoning_content"] = said.reasoning_content
        if said.content:
            delta["content"] = said.content
        if said.tool_calls:
            delta["tool_calls"] = [_call(one) for one in said.tool_calls]
        if delta or (self.with_logprobs and said.has_logprobs):
            now = usage().openai() if usage is not None and self.live_usage else None
            yield self._chunk(index, delta, self._logprobs(said), usage=now)

    def ending(self, index: int, reply: Reply) -> Iterator[bytes]:
        """Yield a reply's last chunk: why it ended."""
        yield self._chunk(index, {}, reason=reply.finish_reason)

    def closing(self, replies: Sequence[Reply], usage: Usage) -> Iterator[bytes]:
        """Yield the chunk of token counts, if it is wanted, and the end."""
        if self.with_usage:
            yield frame({**self._head("chat.completion.chunk"), "choices": [], "usage": usage.openai()})
        yield DONE

    def failure(self, error: ApiError) -> Iterator[bytes]:
        """Yield an event with `error`, which clients take for a failure."""
        yield frame(error.envelope())

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        logprobs: Any = None,
        reason: str | None = None,
        usage: dict[str, Any] | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        rest = {"choices": [choice], "usage": usage} if self.with_usage else {"choices": [choice]}
        return self._beginning + to_json(rest)[1:] + b"\n\n"

    @cached_property
    def _beginning(self) -> bytes:
        """What every chunk begins with, up to the comma behind it: written once, not for each token."""
        return b"data: " + to_json(self._head("chat.completion.chunk"))[:-1] + b","

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.completion_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def _logprobs(self, said: Said) -> dict[str, Any] | None:
        if not self.with_logprobs:
            return None
        logprobs = {"content": entries(said.content_logprobs, self.bytes_of), "refusal": None}
        thought = {"reasoning_content": entries(said.reasoning_logprobs, self.bytes_of)} if self.thinks else {}
        return {**logprobs, **thought}


def _call(one: ToolCallDelta) -> dict[str, Any]:
    """Return a piece of a tool call: what it is called in its first, arguments alone in later ones."""
    if one.id is None:
        return {"index": one.index, "function": {"arguments": one.arguments}}
    function = {"name": one.name, "arguments": one.arguments}
    return {"index": one.index, "id": one.id, "type": "function", "function": function}


def model_object(name: str, created: int, context_tokens: int | None) -> dict[str, Any]:
    """Return a model as GET /v1/models lists it; the context is null while the weights load."""
    return {"id": name, "object": "model", "created": created, "owned_by": "leanseek", "context_length": context_tokens}
