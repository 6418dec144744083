"""Completion: the objects that answer a chat request, whole or chunk by chunk, as OpenAI and DeepSeek spell them."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from leanseek.server.openai import ChatRequest
from leanseek.server.reply import Said

# What OpenAI writes for a token that has no chance at all; JSON has no infinity.
LEAST_LOGPROB = -9999.0


@dataclass(frozen=True)
class Completion:
    """What all objects of one answer share, and how they are built.

    Args:
        completion_id, created: the same in every chunk.
        model, fingerprint: which model answers.
        thinks: whether the message has a reasoning_content.
        with_logprobs: whether choices carry log-probabilities.
        with_usage: whether chunks have a usage field (null but in the last).
    """

    completion_id: str
    created: int
    model: str
    fingerprint: str
    thinks: bool
    with_logprobs: bool
    with_usage: bool

    @classmethod
    def begin(cls, request: ChatRequest, model: str, fingerprint: str) -> Completion:
        """Give an answer its id and time."""
        name = f"chatcmpl-{secrets.token_hex(16)}"
        thinks, logprobs = request.thinks, bool(request.logprobs)
        return cls(name, int(time.time()), model, fingerprint, thinks, logprobs, request.includes_usage)

    def whole(self, replies: Sequence[Said], reasons: Sequence[str | None], usage: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request that does not stream."""
        built = []
        for index, (said, reason) in enumerate(zip(replies, reasons, strict=True)):
            message: dict[str, Any] = {"role": "assistant", "content": said.content, "refusal": None}
            if self.thinks:
                message["reasoning_content"] = said.reasoning_content
            logprobs = self._logprobs(said)
            built.append({"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason})
        return {**self._head("chat.completion"), "choices": built, "usage": usage}

    def opening(self, index: int) -> dict[str, Any]:
        """Return a reply's first chunk: who speaks."""
        return self._chunk(index, {"role": "assistant", "content": ""}, None, None)

    def piece(self, index: int, said: Said) -> dict[str, Any] | None:
        """Return the chunk for what one token said, or None if that is nothing."""
        delta = {}
        if said.reasoning_content:
            delta["reasoning_content"] = said.reasoning_content
        if said.content:
            delta["content"] = said.content
        if not delta and not (self.with_logprobs and said.has_logprobs):
            return None
        return self._chunk(index, delta, self._logprobs(said), None)

    def closing(self, index: int, reason: str | None) -> dict[str, Any]:
        """Return a reply's last chunk: why it ended."""
        return self._chunk(index, {}, None, reason)

    def usage(self, usage: dict[str, Any]) -> dict[str, Any]:
        """Return the chunk of token counts that ends a stream."""
        return {**self._head("chat.completion.chunk"), "choices": [], "usage": usage}

    def _chunk(self, index: int, delta: dict[str, Any], logprobs: Any, reason: str | None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        return {**chunk, "usage": None} if self.with_usage else chunk

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
        logprobs = {"content": _entries(said.content_logprobs), "refusal": None}
        return {**logprobs, "reasoning_content": _entries(said.reasoning_logprobs)} if self.thinks else logprobs


def _entries(logprobs: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    return [
        {"token": text, "logprob": max(value, LEAST_LOGPROB), "bytes": list(text.encode()), "top_logprobs": []}
        for text, value in logprobs
    ]


def count_usage(prompt_tokens: int, completion_tokens: int, reasoning_tokens: int) -> dict[str, Any]:
    """Return a request's token counts, in OpenAI's and in DeepSeek's fields; nothing is cached yet."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "prompt_cache_hit_tokens": 0,
        "prompt_cache_miss_tokens": prompt_tokens,
    }


def model_object(name: str, created: int, context_tokens: int | None) -> dict[str, Any]:
    """Return a model as GET /v1/models lists it; the context is null while the weights load."""
    return {"id": name, "object": "model", "created": created, "owned_by": "leanseek", "context_length": context_tokens}


def to_json(value: Any) -> bytes:
    """Write JSON as UTF-8; half a surrogate pair (a file name can hold one) stays an escape."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")
