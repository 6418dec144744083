"""The web application: which path does what, and how a request becomes an answer."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from leanseek.engine.request import SamplingParams
from leanseek.errors import LeanseekError
from leanseek.messages import Message
from leanseek.server.bridge import Bridge, NotReadyError, OverloadedError, Ticket
from leanseek.server.completion import Completion, count_usage, model_object, to_json
from leanseek.server.defaults import SamplingDefaults
from leanseek.server.gate import Gate, error_response
from leanseek.server.openai import ApiError, ChatRequest, parse_chat_request
from leanseek.server.reply import Reply, Said
from leanseek.server.sse import DONE, ClientGoneError, EventStream, frame, unless_disconnected

MOST_BODY_BYTES = 4 << 20
BODY_TIMEOUT_S = 30.0
# What servers log for a client that went away; nobody reads it.
CLIENT_CLOSED_REQUEST = 499


@dataclass(frozen=True)
class Served:
    """What is served.

    Args:
        name: the model's id in requests and answers.
        fingerprint: changes with the weights and the program (OpenAI's system_fingerprint).
        defaults: how the model wants to be sampled.
        created: seconds since 1970.
    """

    name: str
    fingerprint: str = "fp_unknown"
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)
    created: int = field(default_factory=lambda: int(time.time()))


def make_app(bridge: Bridge, served: Served, api_keys: tuple[str, ...] = ()) -> ASGIApp:
    """Build the application.

    Args:
        bridge: to the engine; started by the caller.
        served: what is served.
        api_keys: any of them opens; none: no key is needed.
    """
    endpoints = Endpoints(bridge, served)
    routes = [
        Route("/", endpoints.page, methods=["GET"]),
        Route("/health", endpoints.health, methods=["GET"]),
        Route("/ready", endpoints.ready, methods=["GET"]),
    ]
    # DeepSeek's base URL has no /v1, OpenAI's has.
    for base in ("/v1", ""):
        routes += [
            Route(f"{base}/chat/completions", endpoints.chat, methods=["POST"]),
            Route(f"{base}/models", endpoints.models, methods=["GET"]),
            Route(f"{base}/models/{{name:path}}", endpoints.model, methods=["GET"]),
        ]
    handlers: dict[Any, Any] = {LeanseekError: _tell, HTTPException: _tell_http, Exception: _tell_unexpected}
    return Gate(Starlette(routes=routes, exception_handlers=handlers), api_keys)


class Endpoints:
    """One method a path."""

    def __init__(self, bridge: Bridge, served: Served) -> None:
        self.bridge, self.served = bridge, served
        self._page = (resources.files("leanseek.server") / "web" / "index.html").read_text(encoding="utf-8")
        self._page_headers = {"content-security-policy": _policy(self._page), "referrer-policy": "no-referrer"}

    async def page(self, request: Request) -> Response:
        """GET /: the chat page."""
        return HTMLResponse(self._page, headers=self._page_headers)

    async def health(self, request: Request) -> Response:
        """GET /health: 200 while the server lives and its engine has not failed."""
        alive = self.bridge.state in ("loading", "ready")
        return _json({"status": "ok" if alive else self.bridge.state}, 200 if alive else 503)

    async def ready(self, request: Request) -> Response:
        """GET /ready: 200 once the model answers; 503 with how far the loading is before."""
        bridge = self.bridge
        if bridge.state == "ready":
            return _json({"status": "ready", "model": self.served.name, "requests": bridge.active})
        state: dict[str, Any] = {"status": bridge.state}
        if bridge.state == "loading":
            state |= {"phase": bridge.phase, "progress": bridge.progress, "elapsed_s": round(bridge.elapsed_s, 1)}
        return _json(state, 503)

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return _json({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{name}."""
        self._check_model(request.path_params["name"])
        return _json(self._model())

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        asked = parse_chat_request(await _read_body(request))
        self._check_model(asked.model)
        prompt_ids = await self._prompt(asked)
        params = asked.sampling(self.served.defaults, self.bridge.engine.max_context_tokens - len(prompt_ids))
        answer = Completion.begin(asked, self.served.name, self.served.fingerprint)
        ticket = self.bridge.submit(prompt_ids, params)
        replies = self._replies(asked, params)
        if asked.stream:
            return EventStream(_stream(ticket, answer, replies), ticket.close)
        try:
            return _json(await unless_disconnected(request.receive, _gather(ticket, answer, replies)))
        except ClientGoneError:
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        finally:
            ticket.close()

    def _model(self) -> dict[str, Any]:
        loaded = self.bridge.state == "ready"
        context_tokens = self.bridge.engine.max_context_tokens if loaded else None
        return model_object(self.served.name, self.served.created, context_tokens)

    def _check_model(self, name: str | None) -> None:
        if name not in (None, self.served.name):
            message = f"model {name!r} is not served here; have {self.served.name!r}"
            raise ApiError(404, message, code="model_not_found", param="model")

    async def _prompt(self, asked: ChatRequest) -> list[int]:
        engine = self.bridge.engine
        if engine.chat is None:
            raise ApiError(500, "the model has no tokenizer")
        messages: list[Message] = asked.conversation()
        # In a thread: the text may be megabytes, and other requests' tokens must not wait for it.
        prompt_ids = await asyncio.to_thread(engine.chat.prompt, messages, thinking=asked.thinks)
        if len(prompt_ids) >= engine.max_context_tokens:
            raise ApiError(
                400,
                f"the conversation has {len(prompt_ids)} tokens; the model's context of "
                f"{engine.max_context_tokens} leaves no room for a reply",
                code="context_length_exceeded",
                param="messages",
            )
        return prompt_ids

    def _replies(self, asked: ChatRequest, params: SamplingParams) -> list[Reply]:
        chat = self.bridge.engine.chat
        assert chat is not None
        return [Reply(chat, params.stop, thinking=asked.thinks) for _ in range(params.n)]


async def _gather(ticket: Ticket, answer: Completion, replies: list[Reply]) -> dict[str, Any]:
    """Wait for all replies and return them as one object."""
    parts: list[list[Said]] = [[] for _ in replies]
    async for event in ticket:
        parts[event.index].append(replies[event.index].push(event))
    reasons = [reply.finish_reason for reply in replies]
    return answer.whole([Said.joined(part) for part in parts], reasons, _usage(ticket, replies))


async def _stream(ticket: Ticket, answer: Completion, replies: list[Reply]) -> AsyncIterator[bytes]:
    """Yield the events of a stream."""
    for index in range(len(replies)):
        yield frame(answer.opening(index))
    try:
        async for event in ticket:
            reply = replies[event.index]
            ended = reply.finish_reason is not None
            piece = answer.piece(event.index, reply.push(event))
            if piece is not None:
                yield frame(piece)
            if reply.finish_reason is not None and not ended:
                yield frame(answer.closing(event.index, reply.finish_reason))
    except LeanseekError as error:
        # The status line is gone already: clients take an event with `error` for a failure.
        yield frame(_api_error(error).envelope())
        return
    if answer.with_usage:
        yield frame(answer.usage(_usage(ticket, replies)))
    yield DONE


def _usage(ticket: Ticket, replies: list[Reply]) -> dict[str, Any]:
    tokens = sum(reply.tokens for reply in replies)
    return count_usage(len(ticket.prompt_ids), tokens, sum(reply.reasoning_tokens for reply in replies))


async def _read_body(request: Request) -> bytes:
    """Read a body of bounded size in bounded time."""
    too_large = ApiError(413, f"the body is larger than {MOST_BODY_BYTES} bytes", code="request_too_large")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MOST_BODY_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                body += part
                if len(body) > MOST_BODY_BYTES:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s", code="timeout") from None
    except ClientDisconnect:
        raise ApiError(400, "the body was cut off", code="incomplete_body") from None
    return bytes(body)


def _api_error(error: LeanseekError) -> ApiError:
    """Return a failure as a client is told of it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, OverloadedError):
        return ApiError(429, str(error), code="overloaded", headers={"retry-after": "1"})
    if isinstance(error, NotReadyError):
        return ApiError(503, str(error), code="not_ready", headers={"retry-after": "1"})
    return ApiError(500, str(error), code="engine_failed")


async def _tell(request: Request, error: Exception) -> Response:
    assert isinstance(error, LeanseekError)
    return error_response(_api_error(error))


async def _tell_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = f"there is no {request.url.path}; see /v1/chat/completions and /v1/models"
        return error_response(ApiError(404, message, code="unknown_url"))
    return error_response(ApiError(error.status_code, error.detail, headers=dict(error.headers or {})))


async def _tell_unexpected(request: Request, error: Exception) -> Response:
    return error_response(ApiError(500, f"the server failed ({type(error).__name__})", code="internal_error"))


def _json(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")


def _policy(page: str) -> str:
    """Return a content security policy under which only the page's own script and style run."""

    def hashes(tag: str) -> str:
        texts = re.findall(f"<{tag}>(.*?)</{tag}>", page, flags=re.DOTALL)
        return " ".join(f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
