"""Answers that take long: streams of events, and JSON that is waited for; both end when their client goes away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from leanseek.errors import LeanseekError
from leanseek.server.jsontext import to_json

# Proxies close a connection that is silent for long; prefill can be. Comments are no events, and white space before
# JSON is none of it.
KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_JSON = b"\n"
KEEP_ALIVE_S = 10.0
# A client that takes nothing for so long, although something is there, has gone without saying so.
TAKING_TIMEOUT_S = 120.0

Result = TypeVar("Result")


class ClientGoneError(ConnectionError):
    """The client closed the connection before its answer was ready."""


async def unless_disconnected(
    receive: Receive, work: Coroutine[Any, Any, Result], *watches: Coroutine[Any, Any, None]
) -> Result:
    """Do some work, but stop as soon as the client goes away.

    Args:
        receive: of a request whose body has been read.
        work: is cancelled when the client goes away.
        watches: what else finds out that it did; each ends then.
    Raises:
        ClientGoneError: it did.
    """
    task = asyncio.create_task(work)
    tasks = [task, *(asyncio.create_task(one) for one in (_disconnect(receive), *watches))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError("the client went away")
        return task.result()
    finally:
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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
        self._sending_s: float | None = None  # since when the client has been given something that it does not take
        self._over = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            await unless_disconnected(receive, self._answer(send), self._beat(send))
        except ClientGoneError:
            pass
        finally:
            self._close()

    async def _answer(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for event in self.body_iterator:
            await self._send(send, event)
        self._over = True
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _beat(self, send: Send) -> None:
        """Say something whenever nothing was sent for a while; end when the client has taken nothing for long.

        One clock a stream: a limit on each sending would cost as much as the sending.
        """
        while True:
            sent = self._sent
            await asyncio.sleep(min(KEEP_ALIVE_S, TAKING_TIMEOUT_S))
            if self._sending_s is not None:
                if time.monotonic() - self._sending_s >= TAKING_TIMEOUT_S:
                    return
            elif sent == self._sent and not self._over:
                try:
                    async with asyncio.timeout(TAKING_TIMEOUT_S):
                        await self._send(send, KEEP_ALIVE)
                except TimeoutError:
                    return

    async def _send(self, send: Send, body: Any) -> None:
        self._sent += 1
        self._sending_s = time.monotonic()
        await send({"type": "http.response.body", "body": body, "more_body": True})
        self._sending_s = None


class PatientAnswer(Response):
    """Sends JSON when it is ready, empty lines until then, and stops when the client goes away.

    Once an empty line is sent the status is 200; a failure after that is told in the body alone, as DeepSeek does.

    Args:
        work: gives the value.
        close: called at the end, whatever ended it; frees what the value comes from.
        tell: gives the answer to a failure.
    """

    def __init__(
        self, work: Coroutine[Any, Any, Any], close: Callable[[], None], tell: Callable[[LeanseekError], Response]
    ) -> None:
        super().__init__(media_type="application/json")
        self._work, self._close, self._tell = work, close, tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            await unless_disconnected(receive, self._answer(scope, receive, send))
        except ClientGoneError:
            pass
        finally:
            self._close()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        task, begun = asyncio.create_task(self._work), False
        try:
            while not (await asyncio.wait({task}, timeout=KEEP_ALIVE_S))[0]:
                if not begun:
                    headers = [(b"content-type", b"application/json")]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                    begun = True
                await send({"type": "http.response.body", "body": KEEP_ALIVE_JSON, "more_body": True})
            try:
                answer = Response(to_json(task.result()), media_type="application/json")
            except LeanseekError as error:
                answer = self._tell(error)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if begun:
            await send({"type": "http.response.body", "body": answer.body, "more_body": False})
        else:
            await answer(scope, receive, send)
