"""Cluster: replicas of the server on many machines, behind a router that sends a conversation where it is known.

A Ray Serve application (extra `cluster`): `serve run leanseek.server.cluster:application model=DIR replicas=2`. The
front reads a request and hands it on; each replica is the whole server, without a socket of its own. What a replica
says is passed through piece by piece, and a client that leaves is gone for the replica too.
"""

# Without `annotations` of the future: Ray looks at the type that `application` takes.

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import ASGIApp, Message

from leanseek.errors import UsageError
from leanseek.run import model_folder
from leanseek.server.affinity import ANYWHERE, key_of, ranked
from leanseek.server.app import make_site
from leanseek.server.bill import Bill
from leanseek.server.body import read_bytes
from leanseek.server.bridge import Bridge
from leanseek.server.gate import read_keys
from leanseek.server.loading import Loading, keep_objects
from leanseek.server.refusal import ApiError, error_response
from leanseek.server.store import Store

try:
    from ray import serve
    from ray.serve.config import RequestRouterConfig
    from ray.serve.exceptions import BackPressureError
    from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica
except ImportError:
    raise UsageError("a cluster needs Ray: pip install 'leanseek[cluster]'") from None

# Pieces of an answer that wait for who takes them.
MOST_PIECES = 16
LEAVING_S = 5.0
RETRY_S = 5


class ClusterSettings(BaseModel):
    """What `serve run` takes as NAME=VALUE, and a file of `serve deploy` under `args`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = Field(description="a run folder or a model folder; every machine needs it under this path")
    replicas: int = Field(2, ge=1, le=4096, description="servers, each with the whole model")
    name: str | None = Field(None, description="what requests call the model; none: the folder's name")
    weights: str = Field("fp32", description="fp32 or bf16")
    device: str = Field("cpu", description="cpu or cuda")
    cpus: float = Field(1.0, gt=0, description="processors that Ray sets aside for a replica")
    threads: int = Field(1, ge=1, description="threads that a replica computes with")
    max_batch: int = Field(64, ge=1, description="replies that a replica draws at once; more go to the next one")
    max_requests: int = Field(1024, ge=1, description="requests that may wait in front of all replicas; then 429")
    cache_gib: float | None = Field(None, description="GiB for texts, of each replica; none: a share of what is free")
    cache_dir: Path | None = Field(None, description="folder for texts, one below it for each replica of a machine")
    cache_disk_gib: float = Field(8.0, description="most that one of them may take")
    drafts: int | None = Field(None, description="tokens that the MTP layer drafts at once")
    api_key_file: Path | None = Field(None, description="API keys, one a line")
    insecure: bool = Field(False, description="answer under any host name although there is no key")


class PrefixRouter(RequestRouter):
    """Prefers the replica that a request's conversation belongs to, and the next one where that is full."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replicas, each a rank of its own; of a request that belongs anywhere, all in one."""
        key = pending_request.args[0] if pending_request is not None and pending_request.args else ANYWHERE
        if key == ANYWHERE:
            return [candidate_replicas]
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        return [[by_name[name]] for name in ranked(key, list(by_name))]


class Replica:
    """The server on one machine, asked through Ray."""

    def __init__(self, settings: ClusterSettings) -> None:
        torch.set_num_threads(settings.threads)
        name = serve.get_replica_context().replica_id.unique_id
        place = settings.cache_dir / str(serve.get_replica_context().rank.local_rank) if settings.cache_dir else None
        store = Store(settings.cache_gib, place, settings.cache_disk_gib, sharers=settings.replicas)
        loading = Loading(
            model_folder(settings.model), settings.weights, settings.device, settings.max_batch, store, settings.drafts
        )
        self._bridge = Bridge(
            loading.engine, most_requests=settings.max_batch + settings.max_requests, bill=Bill(loading.meter())
        )
        keys = read_keys(settings.api_key_file) if settings.api_key_file is not None else ()
        self._app = make_site(self._bridge, loading.served(settings.name), keys, any_host=settings.insecure).app
        self._mark = (b"x-replica", name.encode())
        self._bridge.on_ready = keep_objects
        self._bridge.start()
        self._bridge.wait()  # Ray sends nothing before this is over

    async def answer(self, key: str, scope: dict[str, Any], body: bytes) -> AsyncIterator[Any]:
        """Yield status and headers, then the pieces of the answer.

        Args:
            key: where the request belongs, for the router.
            scope: method, path, query and headers, as ASGI has them.
            body: of the request.
        """
        async for message in messages_of(self._app, scope, body):
            if message["type"] == "http.response.start":
                yield message["status"], [*message.get("headers", ()), self._mark]
            elif message.get("body"):
                yield message["body"]

    def check_health(self) -> None:
        """Tell Ray whether to start this replica anew."""
        _ = self._bridge.engine

    def __del__(self) -> None:
        if hasattr(self, "_bridge"):
            self._bridge.close()


class Front:
    """Takes requests from Ray's HTTP proxy and hands them to replicas."""

    def __init__(self, replicas: Any) -> None:
        self._answers = replicas.options(method_name="answer", stream=True)

    async def __call__(self, request: Request) -> Response:
        """Answer a request with what a replica says to it."""
        path = request.scope["path"]
        try:
            body = await read_bytes(request)
        except ApiError as error:
            return error_response(error, path)
        scope = {name: request.scope[name] for name in ("method", "path", "query_string", "headers")}
        pieces = self._answers.remote(key_of(body), scope, body)
        try:
            status, headers = await anext(pieces)
        except BackPressureError:
            message = "all replicas are full, and as many requests wait as may; try again later"
            return error_response(
                ApiError(429, message, code="overloaded", headers={"retry-after": str(RETRY_S)}), path
            )
        answer = StreamingResponse(pieces, status)
        answer.raw_headers = [(bytes(name), bytes(value)) for name, value in headers]
        return answer


def application(settings: ClusterSettings) -> serve.Application:
    """Return the application, for `serve run`, `serve deploy` and `ray.serve.run`.

    Args:
        settings: what is served, and by how many.
    Raises:
        CheckpointError: the folder holds no model.
    """
    model_folder(settings.model)
    replica = serve.deployment(
        Replica,
        name="replica",
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.max_batch,
        max_queued_requests=settings.max_requests,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": int(settings.device == "cuda")},
        request_router_config=RequestRouterConfig(request_router_class=PrefixRouter),
    )
    front = serve.deployment(
        Front,
        name="front",
        max_ongoing_requests=settings.replicas * settings.max_batch + settings.max_requests,
        ray_actor_options={"num_cpus": 0},
    )
    return front.bind(replica.bind(settings))


async def messages_of(app: ASGIApp, scope: dict[str, Any], body: bytes) -> AsyncIterator[Message]:
    """Ask an ASGI application in this process; yield what it sends. Leaving early is leaving as a client does."""
    said: asyncio.Queue[Message | None] = asyncio.Queue(MOST_PIECES)
    gone, waiting = asyncio.Event(), [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if waiting:
            return waiting.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def work() -> None:
        whole: dict[str, Any] = {"type": "http", "http_version": "1.1", "scheme": "http", "root_path": "", **scope}
        whole["headers"] = _pairs(scope["headers"])
        try:
            await app(whole, receive, said.put)
        finally:
            if not gone.is_set():
                await said.put(None)

    task = asyncio.create_task(work())
    try:
        while (message := await said.get()) is not None:
            yield message
        await task
    finally:
        gone.set()
        if not task.done():
            await asyncio.wait({task}, timeout=LEAVING_S)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _pairs(headers: Sequence[Sequence[bytes]]) -> list[tuple[bytes, bytes]]:
    return [(bytes(name), bytes(value)) for name, value in headers]
