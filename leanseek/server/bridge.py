"""Bridge: one thread owns the engine; coroutines hand it requests and get their events."""

from __future__ import annotations

import asyncio
import math
import queue
import secrets
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Literal

from leanseek.engine.engine import Engine
from leanseek.engine.request import Event, SamplingParams
from leanseek.errors import EngineError, LeanseekError, ServerError
from leanseek.log import say
from leanseek.server.bill import Bill
from leanseek.server.metrics import Metrics

# How long `close` waits for the thread: a step ends soon, the reading of weights may not.
STEP_PATIENCE_S = 10.0
LOADING_PATIENCE_S = 1.0
# How much the newest interval between two finished requests counts, and the longest wait that a client is told of.
NEWEST_SHARE = 0.1
LONGEST_RETRY_S = 120

State = Literal["loading", "ready", "failed", "closed"]
# Told what is being done and which share of the loading is over.
Report = Callable[[str, float], None]


class NotReadyError(ServerError):
    """The engine is still loading, could not be loaded, or was closed."""


class StoppingError(NotReadyError):
    """The server stops before the request is answered."""


class RefusedError(EngineError):
    """The engine did not take a request: something is wrong with it."""


class OverloadedError(ServerError):
    """More requests are under way than are allowed at once.

    Args:
        message: says so.
        retry_s: after how many seconds there should be room.
    """

    def __init__(self, message: str, retry_s: int) -> None:
        super().__init__(message)
        self.retry_s = retry_s


class Ticket:
    """One request on its way through the engine, as its coroutine sees it.

    Use it as a context manager: leaving it, for whatever reason, frees what the request holds.
    """

    def __init__(self, bridge: Bridge, prompt_ids: Sequence[int], params: SamplingParams, scope: str = "") -> None:
        self.request_id = f"http-{secrets.token_hex(8)}"
        self.prompt_ids, self.params, self.scope = prompt_ids, params, scope
        self.share = bridge.bill.open()
        self.began_s = time.monotonic()
        self.last_s: dict[int, float] = {}  # reply -> when it last got tokens; the engine's thread counts
        self.loop = asyncio.get_running_loop()
        self.running = params.n  # replies that have not ended; the engine's thread counts
        self._bridge = bridge
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
                raise EngineError(item.error or "the reply broke")
            if item.finish_reason is not None:
                ended += 1
                self._over = ended == self.params.n
            yield item

    def deliver(self, item: Event | LeanseekError) -> None:
        """Hand over an event or the failure that ends the request; called in the request's event loop."""
        self._arrived.put_nowait(item)

    def close(self) -> None:
        """Cancel what is left of the request; may be called again."""
        if not self._over:
            self._over = True
            self._bridge.cancel(self)


class Bridge:
    """Runs an engine in a thread of its own and takes requests for it from event loops.

    Orders (add, cancel) are obeyed between two steps of the engine, so a cancelled request is gone
    before the next step. A failure of the engine fails the requests under way, and it goes on.

    Args:
        load: makes the engine, in that thread; called with a function that takes reports.
        most_requests: how many may be under way at once.
        bill: divides what the work costs; None: nothing is counted.
        metrics: counts what is done; None: a bridge's own.
    """

    def __init__(
        self,
        load: Callable[[Report], Engine],
        *,
        most_requests: int = 1024,
        bill: Bill | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.bill, self.metrics = bill or Bill(), metrics or Metrics()
        self.state: State = "loading"
        self.failure: Exception | None = None
        self.phase, self.progress = "starting", 0.0
        self.on_failure: Callable[[], None] = lambda: None
        self.steps = 0
        self._load, self._most_requests = load, most_requests
        self._orders: queue.SimpleQueue[tuple[str, Ticket] | None] = queue.SimpleQueue()
        self._tickets: dict[str, Ticket] = {}
        self._engine: Engine | None = None
        self._lock = threading.Lock()  # no order may slip in behind the end
        self._settled = threading.Event()
        self._interval_s = self._finished_s = 0.0  # between two finished requests; when the last one was
        self._began_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="leanseek-engine", daemon=True)

    def start(self) -> None:
        """Begin to load the engine; returns at once."""
        self._began_s = time.monotonic()
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until the engine is loaded.

        Raises:
            LeanseekError: it could not be loaded (whatever `load` raised).
            NotReadyError: it took longer than `timeout_s`.
        """
        if not self._settled.wait(timeout_s):
            raise NotReadyError(f"the model is not loaded after {timeout_s:.0f} s")
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Fail what is under way and end the thread; a load that is under way is left to itself."""
        self._orders.put(None)
        if self._thread.is_alive():
            self._thread.join(LOADING_PATIENCE_S if self.state == "loading" else STEP_PATIENCE_S)
        self.state = "closed"

    @property
    def engine(self) -> Engine:
        """The engine, for what may be read from any thread: its chat format, its limits.

        Raises:
            NotReadyError: it is not loaded.
        """
        if self.state != "ready" or self._engine is None:
            reason = {"loading": "is still loading", "failed": "has failed", "closed": "is closed", "ready": ""}
            raise NotReadyError(f"the model {reason[self.state]}")
        return self._engine

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._began_s

    @property
    def active(self) -> int:
        """Requests that the engine has now."""
        return len(self._tickets)

    @property
    def under_way(self) -> int:
        """Requests that the engine has, and those on their way to it."""
        return self.active + self._orders.qsize()

    @property
    def retry_s(self) -> int:
        """Seconds until those who wait now should have been served, as fast as requests were finished lately."""
        return min(max(math.ceil(self.under_way * self._interval_s), 1), LONGEST_RETRY_S)

    def make_room(self, requests: int = 1) -> None:
        """See that so many more requests may come.

        Raises:
            NotReadyError: the engine is not loaded.
            OverloadedError: too many requests are under way.
        """
        _ = self.engine
        under_way = self.under_way
        if under_way + requests > self._most_requests:
            raise OverloadedError(
                f"{under_way} requests are under way, and {self._most_requests} are allowed; try again later",
                self.retry_s,
            )

    def submit(self, prompt_ids: Sequence[int], params: SamplingParams, scope: str = "") -> Ticket:
        """Queue a request from a coroutine; its events arrive in the running event loop.

        Args:
            prompt_ids, params, scope: as of the engine.
        Raises:
            NotReadyError: the engine is not loaded.
            OverloadedError: too many requests are under way.
        """
        self.make_room()
        with self._lock:
            _ = self.engine
            ticket = Ticket(self, prompt_ids, params, scope)
            self._orders.put(("add", ticket))
        return ticket

    def interrupt(self) -> None:
        """End what is under way where it is, and take nothing more; from any thread."""
        self._orders.put(None)

    def cancel(self, ticket: Ticket) -> None:
        """Drop a request before the engine's next step; from any thread."""
        self._orders.put(("cancel", ticket))

    def _run(self) -> None:
        try:
            self._engine = self._load(self._report)
        except Exception as error:  # a background thread: what went wrong is told by wait() and GET /ready
            self.failure, self.state = error, "failed"
        else:
            self.phase, self.progress, self.state = "ready", 1.0, "ready"
        self._settled.set()
        if self._engine is None:
            self.on_failure()
            return
        while self.state == "ready" and self._obey(self._engine):
            if self._engine.has_work:
                self._step(self._engine)
        with self._lock:
            self.state = "closed" if self.state == "ready" else self.state
        self._fail_all(StoppingError("the server is stopping"))
        self._refuse_waiting()
        self._close(self._engine)

    def _close(self, engine: Engine) -> None:
        """Finish what the engine does in the background."""
        self.bill.close()
        disk = getattr(getattr(engine, "prefixes", None), "disk", None)
        if disk is not None:
            disk.close()

    def _report(self, phase: str, progress: float) -> None:
        self.phase, self.progress = phase, progress

    def _obey(self, engine: Engine) -> bool:
        """Carry out the orders that wait; without work, wait for one. False: the end is ordered."""
        wait = not engine.has_work
        while True:
            try:
                order = self._orders.get(block=wait)
            except queue.Empty:
                return True
            wait = False
            if order is None:
                return False
            verb, ticket = order
            if verb == "add":
                self._add(engine, ticket)
            elif self._tickets.pop(ticket.request_id, None) is not None:
                self._cancel(engine, ticket.request_id)

    def _add(self, engine: Engine, ticket: Ticket) -> None:
        try:
            engine.add(ticket.prompt_ids, ticket.params, ticket.request_id, ticket.scope)
        except LeanseekError as error:
            self._send({ticket: [RefusedError(str(error))]})
        except Exception as error:  # the request's boundary
            self._send({ticket: [_failure(error)]})
        else:
            self._tickets[ticket.request_id] = ticket
            self.metrics.prompt_tokens.add(len(ticket.prompt_ids))

    def _refuse_waiting(self) -> None:
        """Tell the clients whose orders will not be obeyed any more."""
        while True:
            try:
                order = self._orders.get_nowait()
            except queue.Empty:
                return
            if order is not None and order[0] == "add":
                self._send({order[1]: [StoppingError("the server is stopping")]})

    def _step(self, engine: Engine) -> None:
        self.bill.begin()
        read = self._read_by(engine)
        try:
            events = engine.step()
        except Exception as error:  # the requests' boundary: they fail, the server goes on
            say(f"a step of the engine failed; its requests were told\n{traceback.format_exc().rstrip()}")
            self._fail_all(_failure(error))
            return
        self.steps += 1
        arrived: dict[Ticket, list[Event | LeanseekError]] = defaultdict(list)
        for event in events:
            ticket = self._tickets.get(event.request_id)
            if ticket is not None:
                arrived[ticket].append(event)
        # A step that says nothing has read a part of some prompts.
        worked_for = arrived or dict.fromkeys(read or self._tickets.values(), (1,))
        self.bill.divide({id(one): (one.share, float(len(events))) for one, events in worked_for.items()})
        self._count(arrived)
        for ticket, items in arrived.items():
            ticket.running -= sum(isinstance(item, Event) and item.finish_reason is not None for item in items)
            if ticket.running == 0:
                del self._tickets[ticket.request_id]
                self._note_finished(ticket)
        self._send(arrived)

    def _read_by(self, engine: Engine) -> list[Ticket]:
        """Return the requests whose prompts are being read."""
        reading = getattr(getattr(engine, "scheduler", None), "reading", ())
        names = {sample.request.request_id for one in reading for sample in one.samples}
        return [self._tickets[name] for name in names if name in self._tickets]

    def _count(self, arrived: dict[Ticket, list[Event | LeanseekError]]) -> None:
        metrics, now_s = self.metrics, time.monotonic()
        metrics.steps.add()
        metrics.joules.add(self.bill.joules - metrics.joules.total)
        metrics.busy_s.add(self.bill.busy_s - metrics.busy_s.total)
        tokens = 0
        for ticket, items in arrived.items():
            cached = 0
            for index in {item.index for item in items if isinstance(item, Event)}:
                before_s = ticket.last_s.get(index)
                if before_s is None:
                    metrics.first_token_s.note(now_s - ticket.began_s)
                else:
                    metrics.between_s.note(now_s - before_s)
            for item in items:
                if isinstance(item, Event):
                    tokens += item.token_id is not None
                    cached = max(cached, item.cached_tokens)
                    ticket.last_s[item.index] = now_s
                    if item.finish_reason is not None:
                        metrics.replies.add(reason=item.finish_reason)
            if cached:
                metrics.cached_tokens.add(cached)
        metrics.completion_tokens.add(tokens)

    def _note_finished(self, ticket: Ticket) -> None:
        now_s = time.monotonic()
        self.metrics.request_s.note(now_s - ticket.began_s)
        # Time without work in between is nobody's.
        interval_s = now_s - max(self._finished_s, ticket.began_s)
        self._interval_s += (NEWEST_SHARE if self._finished_s else 1.0) * (interval_s - self._interval_s)
        self._finished_s = now_s

    def _fail_all(self, error: LeanseekError) -> None:
        """Take every request out of the engine and tell its client."""
        failed = list(self._tickets.values())
        self._tickets.clear()
        if self._engine is not None:
            for ticket in failed:
                self._cancel(self._engine, ticket.request_id)
        self._send({ticket: [error] for ticket in failed})

    def _cancel(self, engine: Engine, request_id: str) -> None:
        try:
            engine.cancel(request_id)
        except Exception as error:  # an engine that cannot let go of a request cannot be trusted with another
            say(f"the engine failed and takes no more requests\n{traceback.format_exc().rstrip()}")
            self.failure, self.state = error, "failed"

    def _send(self, arrived: dict[Ticket, list[Event | LeanseekError]]) -> None:
        """Wake each event loop once for all that its requests got."""
        loops: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, list[Event | LeanseekError]]]] = defaultdict(list)
        for ticket, items in arrived.items():
            loops[ticket.loop].append((ticket, items))
        for loop, mail in loops.items():
            try:
                loop.call_soon_threadsafe(_deliver, mail)
            except RuntimeError:  # the loop is closed: nobody waits for these any more
                for ticket, _ in mail:
                    self.cancel(ticket)


async def merged(tickets: Sequence[Ticket]) -> AsyncIterator[tuple[int, Event]]:
    """Yield the events of several requests as they come, each with its request's place.

    Raises:
        LeanseekError: of the first request that fails.
    """
    arrived: asyncio.Queue[tuple[int, Event | LeanseekError | None]] = asyncio.Queue()

    async def follow(place: int, ticket: Ticket) -> None:
        try:
            async for event in ticket:
                arrived.put_nowait((place, event))
        except LeanseekError as error:
            arrived.put_nowait((place, error))
        arrived.put_nowait((place, None))

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


def _deliver(mail: list[tuple[Ticket, list[Event | LeanseekError]]]) -> None:
    for ticket, items in mail:
        for item in items:
            ticket.deliver(item)


def _failure(error: Exception) -> LeanseekError:
    """Return a failure as clients are told of it: our own sentences whole, of others only the kind."""
    if isinstance(error, LeanseekError):
        return error
    return EngineError(f"the engine failed ({type(error).__name__}); the request may be sent again")
