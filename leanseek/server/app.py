"""The web application: which path does what."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from leanseek import __version__
from leanseek.errors import LeanseekError
from leanseek.log import say
from leanseek.server.anthropic import CountRequest, MessagesRequest
from leanseek.server.blocks import Blocks, model_info, model_list
from leanseek.server.body import read
from leanseek.server.bridge import Bridge
from leanseek.server.completion import Completion, model_object
from leanseek.server.completions import CompletionRequest, TextCompletion
from leanseek.server.gate import OPEN_PATHS, Gate
from leanseek.server.gauges import gauges
from leanseek.server.items import Items
from leanseek.server.job import Job
from leanseek.server.journal import NOTED, Journal
from leanseek.server.jsontext import to_json
from leanseek.server.metrics import CONTENT_TYPE
from leanseek.server.openai import ChatRequest
from leanseek.server.openapi import describe
from leanseek.server.page import Page
from leanseek.server.refusal import ApiError, as_api_error, error_response
from leanseek.server.responses import ResponsesRequest
from leanseek.server.service import ALIASES, Served, Service
from leanseek.server.sse import EventStream, PatientAnswer
from leanseek.server.tokenize import DetokenizeRequest, TokenizeRequest
from leanseek.server.turnstile import Turnstile
from leanseek.server.wire import Drawing

__all__ = ["ALIASES", "Endpoints", "Served", "Site", "make_site"]

# DeepSeek's base URL has no /v1, OpenAI's has; some of DeepSeek's features stand under /beta alone, here everywhere.
BASES = ("/v1", "", "/beta", "/beta/v1")
CLAUDE = "claude"
# The header by which its clients are known where paths are shared.
ANTHROPIC = "anthropic-version"

# Method of `Endpoints` -> what its body must be.
BODIES: dict[str, type[BaseModel]] = {
    "chat": ChatRequest,
    "complete": CompletionRequest,
    "respond": ResponsesRequest,
    "messages": MessagesRequest,
    "count_tokens": CountRequest,
    "tokenize": TokenizeRequest,
    "detokenize": DetokenizeRequest,
}
Endpoint = Callable[[Request], Awaitable[Response]]


def make_site(
    bridge: Bridge,
    served: Served,
    api_keys: Sequence[str] = (),
    *,
    cors_origins: Sequence[str] = (),
    access_log: bool = False,
    any_host: bool = False,
) -> Site:
    """Build what answers requests.

    Args:
        bridge: to the engine; started by the caller.
        served: what is served.
        api_keys: any of them opens; none: no key is needed.
        cors_origins: web pages of these origins may ask.
        access_log: whether each request is told on standard error.
        any_host: whether it answers under any host name, although no key is needed.
    """
    endpoints = Endpoints(bridge, served)
    paths = endpoints.paths()
    routes = [Route(path, endpoint, methods=[method]) for (method, path), endpoint in paths.items()]
    handlers: dict[Any, Any] = {LeanseekError: _tell, HTTPException: _tell_http, Exception: _tell_unexpected}
    open_paths = (*OPEN_PATHS, *endpoints.page_files.paths)
    app: ASGIApp = Starlette(routes=routes, exception_handlers=handlers)
    app = gate = Gate(app, api_keys, open_paths=open_paths, any_host=any_host)
    if cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    known = {path for _, path in paths if "{" not in path}
    journal = Journal(app, bridge.metrics, known, say if access_log else None)
    replying = {path for (_, path), one in paths.items() if one in endpoints.replying}
    return Site(journal, Turnstile(bridge, gate, journal, replying))


@dataclass(frozen=True)
class Site:
    """What answers requests.

    Args:
        app: answers all of them.
        turnstile: answers those for which there is no room, at less cost, if it is asked first.
    """

    app: ASGIApp
    turnstile: Turnstile


class Endpoints:
    """One method a path."""

    def __init__(self, bridge: Bridge, served: Served) -> None:
        self.bridge, self.served = bridge, served
        self.service = Service(bridge, served)
        self.page_files = Page()

    @property
    def replying(self) -> tuple[Endpoint, ...]:
        """Those that let the model speak."""
        return self.chat, self.complete, self.respond, self.messages

    def paths(self) -> dict[tuple[str, str], Endpoint]:
        """Return every method and path that is served, and by what."""
        found: dict[tuple[str, str], Endpoint] = {("GET", path): self.page for path in self.page_files.paths}
        found |= {("GET", "/health"): self.health, ("GET", "/ready"): self.ready, ("GET", "/metrics"): self.metrics}
        found[("GET", "/openapi.json")] = self.openapi
        for base in BASES:
            found |= {
                ("POST", f"{base}/chat/completions"): self.chat,
                ("POST", f"{base}/completions"): self.complete,
                ("GET", f"{base}/models"): self.models,
                ("GET", f"{base}/models/{{name:path}}"): self.model,
            }
        for base in ("/v1", ""):
            found |= {
                ("POST", f"{base}/responses"): self.respond,
                ("POST", f"{base}/tokenize"): self.tokenize,
                ("POST", f"{base}/detokenize"): self.detokenize,
                ("GET", f"{base}/user/balance"): self.balance,
            }
        for base in ("/v1", "/anthropic/v1"):
            found |= {
                ("GET", f"{base}/models"): self.models,
                ("GET", f"{base}/models/{{name:path}}"): self.model,
                ("POST", f"{base}/messages"): self.messages,
                ("POST", f"{base}/messages/count_tokens"): self.count_tokens,
            }
        return found

    async def page(self, request: Request) -> Response:
        """GET / and what belongs to it: the chat page."""
        answer = self.page_files.respond(request)
        if answer is None:
            raise HTTPException(404)
        return answer

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

    async def metrics(self, request: Request) -> Response:
        """GET /metrics: for Prometheus."""
        return Response(self.bridge.metrics.text(gauges(self.bridge)), headers={"content-type": CONTENT_TYPE})

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json: what this server takes."""
        bodies = {path: BODIES[one.__name__] for (_, path), one in self.paths().items() if one.__name__ in BODIES}
        paths = [
            (method, path, (one.__doc__ or "").partition(": ")[2] or path)
            for (method, path), one in self.paths().items()
            if one != self.page
        ]
        return _json(describe(paths, bodies, __version__))

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        if ANTHROPIC in request.headers:
            return _json(model_list(self.served.names, self.served.created))
        return _json({"object": "list", "data": [self._model(name) for name in self.served.names]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{name}."""
        name = self.served.check(request.path_params["name"])
        if ANTHROPIC in request.headers:
            return _json(model_info(name, self.served.created))
        return _json(self._model(name))

    async def balance(self, request: Request) -> Response:
        """GET /user/balance: DeepSeek's; there is nothing to pay here."""
        zero = dict.fromkeys(("total_balance", "granted_balance", "topped_up_balance"), "0.00")
        return _json({"is_available": True, "balance_infos": [{"currency": "USD", **zero}]})

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        asked = await read(request, ChatRequest, "messages")
        name = self.served.check(asked.model)
        wanted, chat = asked.asked(), self.service.chat
        answer = Completion.begin(
            name,
            self.served.fingerprint,
            thinks=asked.thinks and chat.thinks,
            with_logprobs=bool(asked.logprobs),
            with_usage=asked.includes_usage,
            live_usage=asked.stream_options is not None and asked.stream_options.live,
            choices=asked.n or 1,
            bytes_of=chat.tokenizer.bytes_of,
        )
        return self._respond(request, await self.service.converse(wanted, answer, request.scope[NOTED]), asked.stream)

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions."""
        asked = await read(request, CompletionRequest, "a prompt")
        name = self.served.check(asked.model)

        def make(prompts: Sequence[Sequence[int]]) -> TextCompletion:
            tokenizer = self.service.chat.tokenizer
            return TextCompletion(asked, prompts, tokenizer, model=name, fingerprint=self.served.fingerprint)

        return self._respond(request, await self.service.complete(asked, make, request.scope[NOTED]), asked.stream)

    async def respond(self, request: Request) -> Response:
        """POST /v1/responses."""
        asked = await read(request, ResponsesRequest, "input")
        answer = Items(asked, self.served.check(asked.model), self.service.chat.tokenizer.bytes_of)
        return self._respond(
            request, await self.service.converse(asked.asked(), answer, request.scope[NOTED]), asked.stream
        )

    async def messages(self, request: Request) -> Response:
        """POST /v1/messages: Anthropic's."""
        asked = await read(request, MessagesRequest, "messages")
        name = self.served.check(asked.model, also=CLAUDE)
        answer = Blocks(name, asked.max_tokens, shows_thinking=asked.shows_thinking)
        job = await self.service.converse(asked.asked(), answer, request.scope[NOTED], "toolu_")
        return self._respond(request, job, asked.stream)

    async def count_tokens(self, request: Request) -> Response:
        """POST /v1/messages/count_tokens."""
        asked = await read(request, CountRequest, "messages")
        self.served.check(asked.model, also=CLAUDE)
        ids = await self.service.prompt_ids(asked.drawn(Drawing(), None))
        return _json({"input_tokens": len(ids)})

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize."""
        asked = await read(request, TokenizeRequest, "a prompt or messages")
        self.served.check(asked.model)
        chat, wanted = self.service.chat, asked.asked()
        ids = (
            await asyncio.to_thread(asked.text_ids, chat.tokenizer)
            if wanted is None
            else await self.service.prompt_ids(wanted)
        )
        return _json({"tokens": ids, "count": len(ids), "max_model_len": self.service.engine.max_context_tokens})

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize."""
        asked = await read(request, DetokenizeRequest, "tokens")
        self.served.check(asked.model)
        tokenizer = self.service.chat.tokenizer
        return _json({"prompt": await asyncio.to_thread(tokenizer.decode, asked.tokens, skip_special=False)})

    def _respond(self, request: Request, job: Job, stream: bool | None) -> Response:
        if stream:
            return EventStream(job.stream(), job.close)
        path = request.url.path
        return PatientAnswer(job.whole(), job.close, lambda error: error_response(as_api_error(error), path))

    def _model(self, name: str) -> dict[str, Any]:
        loaded = self.bridge.state == "ready"
        context_tokens = self.bridge.engine.max_context_tokens if loaded else None
        return model_object(name, self.served.created, context_tokens)


async def _tell(request: Request, error: Exception) -> Response:
    assert isinstance(error, LeanseekError)
    return error_response(as_api_error(error), request.url.path)


async def _tell_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 404:
        message = f"there is no {path:.200}; see /v1/chat/completions and /v1/models"
        return error_response(ApiError(404, message, code="unknown_url"), path)
    message, headers = error.detail, dict(error.headers or {})
    if error.status_code == 405:
        message = f"{request.method} is not a method of {path:.200}; have {headers.get('Allow', 'none')}"
    return error_response(ApiError(error.status_code, message, headers=headers), path)


async def _tell_unexpected(request: Request, error: Exception) -> Response:
    message = f"the server failed ({type(error).__name__})"
    return error_response(ApiError(500, message, code="internal_error"), request.url.path)


def _json(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")
