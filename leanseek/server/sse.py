"""Server-sent events, framed by hand, and work that ends when its client goes away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from leanseek.server.completion import to_json

# Proxies close a connection that is silent for long; prefill can be. Comments are no events.
KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_S = 15.0
DONE = b"data: [DONE]\n\n"

Result = TypeVar("Result")


class ClientGoneError(ConnectionError):
    """The client closed the connection before its answer was ready."""


def frame(value: Any) -> bytes:
    """Return an object as one event."""
    return b"data: " + to_json(value) + b"\n\n"


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Do some work, but stop as soon as the client goes away.

    Args:
        receive: of a request whose body has been read.
        work: is cancelled when the client goes away.
    Raises:
        ClientGoneError: it did.
    """
    task, watch = asyncio.create_task(work), asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError("the client went away")
        return task.result()
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Sends events as they come, comments while none does, and stops when the client goes away.

    Args:
        events: framed events.
        close: called at the end, whatever ended it; frees what the events come from.
    """

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._close = close
        self._sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            await unless_disconnected(receive, self._answer(send))
        except ClientGoneError:
            pass
        finally:
            self._close()

    async def _answer(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        heart = asyncio.create_task(self._beat(send))
        try:
            async for event in self.body_iterator:
                await self._send(send, event)
        finally:
            heart.cancel()
            await asyncio.gather(heart, return_exceptions=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _beat(self, send: Send) -> None:
        """Say something whenever nothing was sent for a while."""
        while True:
            sent = self._sent
            await asyncio.sleep(KEEP_ALIVE_S)
            if sent == self._sent:
                await self._send(send, KEEP_ALIVE)

    async def _send(self, send: Send, body: Any) -> None:
        self._sent += 1
        await send({"type": "http.response.body", "body": body, "more_body": True})
        # Neither sending nor taking an event that is there lets others run: a long burst would keep
        # the loop from seeing that the client has left.
        await asyncio.sleep(0)
