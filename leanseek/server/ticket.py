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
        self.has_begun = False  # whether any of it was handed over; the engine's thread says so
        self._cancel = cancel
        self._arrived: list[Event | LeanseekError] = []
        self._waiting: asyncio.Future[None] | None = None
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
        async for batch in self.batches():
            for event in batch:
                yield event

    async def batches(self) -> AsyncIterator[list[Event]]:
        """Yield as `__aiter__`, but all events that are there at once: under load, what is behind is told in one go.

        Raises:
            EngineError: the engine failed, or the model's output broke.
        """
        ended = 0
        while ended < self.params.n:
            batch: list[Event] = []
            failure: LeanseekError | None = None
            for item in await self._take():
                failure = item if isinstance(item, LeanseekError) else _broken(item)
                if failure is not None:
                    self._over = True
                    break
                assert isinstance(item, Event)
                ended += item.finish_reason is not None
                batch.append(item)
            if failure is None:
                self._over = self._over or ended == self.params.n
            if batch:
                yield batch
            if failure is not None:
                raise failure

    async def _take(self) -> list[Event | LeanseekError]:
        """Wait until something has arrived, and take all of it."""
        if self._arrived:
            await asyncio.sleep(0)  # others first: a long burst would keep the loop from seeing that a client has left
        while not self._arrived:
            self._waiting = self.loop.create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        taken, self._arrived = self._arrived, []
        return taken

    def deliver(self, items: Sequence[Event | LeanseekError]) -> None:
        """Hand over events or the failure that ends the request; called in the request's event loop.

        A client that is too far behind loses its request, not the server its memory.
        """
        if len(self._arrived) + len(items) > MOST_BEHIND:
            if self._over:
                return
            self.close()
            message = f"the client is {MOST_BEHIND} tokens behind; the request was ended: read the stream faster"
            items = [BehindError(message)]
        self._arrived += items
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def close(self) -> None:
        """Cancel what is left of the request; may be called again."""
        if not self._over:
            self._over = True
            self._cancel(self)


def _broken(event: Event) -> LeanseekError | None:
    """Return why a reply broke, if it did."""
    if event.finish_reason != "error":
        return None
    # What else breaks a reply is a grammar that cannot be followed, and that is the client's.
    kind = EngineError if event.error in (None, NOT_FINITE) else RefusedError
    return kind(event.error or "the reply broke")


async def merged(tickets: Sequence[Ticket]) -> AsyncIterator[tuple[int, list[Event]]]:
    """Yield the events of several requests as they come, each with its request's place.

    Raises:
        LeanseekError: of the first request that fails.
    """
    if len(tickets) == 1:
        async for batch in tickets[0].batches():
            yield 0, batch
        return
    # Of bounded size, so that what a slow client has not taken stays where it is counted.
    arrived: asyncio.Queue[tuple[int, list[Event] | LeanseekError | None]] = asyncio.Queue(MERGED)

    async def follow(place: int, ticket: Ticket) -> None:
        try:
            async for batch in ticket.batches():
                await arrived.put((place, batch))
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
