"""Ticket: one request on its way through the engine, as its coroutine sees it, and how it can fail."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence

from leanseek.engine.engine import NOT_FINITE
from leanseek.engine.request import Event, SamplingParams
from leanseek.errors import EngineError, LeanseekError, ServerError
from leanseek.server.bill import Share

# Events that may wait for a client that reads slowly: what a server holds for it is bounded.
MOST_BEHIND = 8192
MERGED = 64


class NotReadyError(ServerError):
    """The engine is still loading, could not be loaded, or was closed."""


class StoppingError(NotReadyError):
    """The server stops before the request is answered."""


class RefusedError(EngineError):
    """The engine did not take a request: something is wrong with it."""


class BehindError(EngineError):
    """The client takes its reply much more slowly than it is said."""


class OverloadedError(ServerError):
    """More requests are under way than are allowed at once.

    Args:
        message: says so.
        retry_s: after how many seconds there should be room.
    """

    def __init__(self, message: str, retry_s: int) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class WaitedError(OverloadedError):
    """A request's turn did not come in the time that it may wait."""


class Ticket:
    """One request on its way through the engine.

    Use it as a context manager: leaving it, for whatever reason, frees what the request holds.

    Args:
        prompt_ids, params, scope: as of the engine.
        cancel: called with the ticket when what is left of the request is not wanted any more.
        share: what the request has taken.
    """

    def __init__(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        scope: str,
        cancel: Callable[[Ticket], None],
        share: Share,
    ) -> None:
        self.request_id = f"http-{secrets.token_hex(8)}"
        self.prompt_ids, self.params, self.scope = prompt_ids, params, scope
        self.share = share
        self.began_s = time.monotonic()
        self.last_s: dict[int, float] = {}  # reply -> when it last got tokens; the engine's thread counts
        self.loop = asyncio.get_running_loop()
        self.siblings: Sequence[Ticket] = (self,)  # of one client's request, which begins with the first of them
        self.running = params.n  # replies that have not ended; the engine's thread counts
        self._cancel = cancel
        self._arrived: asyncio.Queue[Event | LeanseekError] = asyncio.Queue()
        self._over = False

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> AsyncIterator[Event]:
        """Yield the request's events until its last reply has ended.

        Raises:
            EngineError: the engine failed, or the model's output broke.
        """
        return self._events()

    async def _events(self) -> AsyncIterator[Event]:
        ended = 0
        while ended < self.params.n:
            item = await self._arrived.get()
            if isinstance(item, LeanseekError):
                self._over = True
                raise item
            if item.finish_reason == "error":
                # What else breaks a reply is a grammar that cannot be followed, and that is the client's.
                broken = EngineError if item.error in (None, NOT_FINITE) else RefusedError
                raise broken(item.error or "the reply broke")
            if item.finish_reason is not None:
                ended += 1
                self._over = ended == self.params.n
            yield item

    def deliver(self, item: Event | LeanseekError) -> None:
        """Hand over an event or the failure that ends the request; called in the request's event loop.

        A client that is too far behind loses its request, not the server its memory.
        """
        if self._arrived.qsize() >= MOST_BEHIND:
            if not self._over:
                self.close()
                message = f"the client is {MOST_BEHIND} tokens behind; the request was ended: read the stream faster"
                self._arrived.put_nowait(BehindError(message))
            return
        self._arrived.put_nowait(item)

    def close(self) -> None:
        """Cancel what is left of the request; may be called again."""
        if not self._over:
            self._over = True
            self._cancel(self)


async def merged(tickets: Sequence[Ticket]) -> AsyncIterator[tuple[int, Event]]:
    """Yield the events of several requests as they come, each with its request's place.

    Raises:
        LeanseekError: of the first request that fails.
    """
    # Of bounded size, so that what a slow client has not taken stays where it is counted.
    arrived: asyncio.Queue[tuple[int, Event | LeanseekError | None]] = asyncio.Queue(MERGED)

    async def follow(place: int, ticket: Ticket) -> None:
        try:
            async for event in ticket:
                await arrived.put((place, event))
        except LeanseekError as error:
            await arrived.put((place, error))
        await arrived.put((place, None))

    tasks = [asyncio.create_task(follow(place, ticket)) for place, ticket in enumerate(tickets)]
    try:
        left = len(tasks)
        while left:
            place, item = await arrived.get()
            if isinstance(item, LeanseekError):
                raise item
            if item is None:
                left -= 1
            else:
                yield place, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
