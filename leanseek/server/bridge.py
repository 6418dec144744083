"""Bridge: one thread owns the engine; coroutines hand it requests and get their events."""

from __future__ import annotations

import itertools
import math
import queue
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Literal

from leanseek.engine.engine import Engine
from leanseek.engine.request import Event, SamplingParams
from leanseek.errors import EngineError, LeanseekError
from leanseek.log import say
from leanseek.server.bill import Bill
from leanseek.server.mail import Mail
from leanseek.server.metrics import Metrics
from leanseek.server.tally import Tally
from leanseek.server.ticket import (
    NotReadyError,
    OverloadedError,
    RefusedError,
    StoppingError,
    Ticket,
    WaitedError,
)

# How long `close` waits for the thread: a step ends soon, the reading of weights may not.
STEP_PATIENCE_S = 10.0
LOADING_PATIENCE_S = 1.0
LONGEST_RETRY_S = 120
# DeepSeek closes a connection whose request has not begun after ten minutes.
QUEUE_S = 600.0
# How often it is looked who has waited too long.
LOOK_S = 1.0

State = Literal["loading", "ready", "failed", "closed"]
# Told what is being done and which share of the loading is over.
Report = Callable[[str, float], None]


class Bridge:
    """Runs an engine in a thread of its own and takes requests for it from event loops.

    Orders (add, cancel) are obeyed between two steps of the engine, so a cancelled request is gone
    before the next step. A failure of the engine fails the requests under way, and it goes on.

    Args:
        load: makes the engine, in that thread; called with a function that takes reports.
        most_requests: how many may be under way at once.
        queue_s: how long a request may wait for its turn.
        bill: divides what the work costs; None: nothing is counted.
        metrics: counts what is done; None: a bridge's own.
    """

    def __init__(
        self,
        load: Callable[[Report], Engine],
        *,
        most_requests: int = 1024,
        queue_s: float = QUEUE_S,
        bill: Bill | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.bill, self.metrics = bill or Bill(), metrics or Metrics()
        self.tally = Tally(self.bill, self.metrics)
        self.state: State = "loading"
        self.failure: Exception | None = None
        self.phase, self.progress = "starting", 0.0
        self.on_ready: Callable[[], None] = lambda: None
        self.on_failure: Callable[[], None] = lambda: None
        self.steps = 0
        self._load, self._most_requests, self._queue_s = load, most_requests, queue_s
        self._looked_s = 0.0
        self._orders: queue.SimpleQueue[tuple[str, Ticket] | None] = queue.SimpleQueue()
        self._tickets: dict[str, Ticket] = {}
        self._mail = Mail(self.cancel)
        self._engine: Engine | None = None
        self._lock = threading.Lock()  # no order may slip in behind the end
        self._settled = threading.Event()
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
        return min(max(math.ceil(self.under_way * self.tally.interval_s), 1), LONGEST_RETRY_S)

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
            ticket = Ticket(prompt_ids, params, scope, self.cancel, self.bill.open())
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
            self.on_ready()
            self.phase, self.progress, self.state = "ready", 1.0, "ready"
        self._settled.set()
        if self._engine is None:
            self.on_failure()
            return
        while self.state == "ready" and self._obey(self._engine):
            if self._engine.has_work:
                self._step(self._engine)
                self._give_up(self._engine)
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
            self._mail.post({ticket: [RefusedError(str(error))]})
        except Exception as error:  # the request's boundary
            self._mail.post({ticket: [_failure(error)]})
        else:
            self._tickets[ticket.request_id] = ticket
            self.tally.began(ticket)

    def _refuse_waiting(self) -> None:
        """Tell the clients whose orders will not be obeyed any more."""
        while True:
            try:
                order = self._orders.get_nowait()
            except queue.Empty:
                return
            if order is not None and order[0] == "add":
                self._mail.post({order[1]: [StoppingError("the server is stopping")]})

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
        said: dict[Ticket, list[Event]] = defaultdict(list)
        for event in events:
            ticket = self._tickets.get(event.request_id)
            if ticket is not None:
                said[ticket].append(event)
        self.tally.step(said, read or list(self._tickets.values()))
        for ticket, items in said.items():
            ticket.running -= sum(item.finish_reason is not None for item in items)
            if ticket.running == 0:
                del self._tickets[ticket.request_id]
                self.tally.finished(ticket)
        self._mail.post(said)

    def _give_up(self, engine: Engine) -> None:
        """Let go of the requests whose turn did not come in time, and tell their clients."""
        now_s = time.monotonic()
        if now_s - self._looked_s < min(LOOK_S, self._queue_s):
            return
        self._looked_s = now_s
        # In the order in which they came: behind the first one that is young all are.
        old = itertools.takewhile(lambda one: now_s - one.began_s > self._queue_s, self._tickets.values())
        silent = [ticket for ticket in old if not any(one.last_s for one in ticket.siblings)]
        queued = engine.queued if silent else set()
        late = [ticket for ticket in silent if all(one.request_id in queued for one in ticket.siblings)]
        for ticket in late:
            if self._tickets.pop(ticket.request_id, None) is not None:
                self._cancel(engine, ticket.request_id)
        if late:
            self.metrics.replies.add(sum(ticket.params.n for ticket in late), reason="queue_timeout")
            message = f"the request has waited {self._queue_s:g} s for its turn and was dropped; try again later"
            error = WaitedError(message, self.retry_s)
            self._mail.post({ticket: [error] for ticket in late})

    def _read_by(self, engine: Engine) -> list[Ticket]:
        """Return the requests whose prompts are being read."""
        reading = getattr(getattr(engine, "scheduler", None), "reading", ())
        names = {sample.request.request_id for one in reading for sample in one.samples}
        return [self._tickets[name] for name in names if name in self._tickets]

    def _fail_all(self, error: LeanseekError) -> None:
        """Take every request out of the engine and tell its client."""
        failed = list(self._tickets.values())
        self._tickets.clear()
        if self._engine is not None:
            for ticket in failed:
                self._cancel(self._engine, ticket.request_id)
        self._mail.post({ticket: [error] for ticket in failed})

    def _cancel(self, engine: Engine, request_id: str) -> None:
        try:
            engine.cancel(request_id)
        except Exception as error:  # an engine that cannot let go of a request cannot be trusted with another
            say(f"the engine failed and takes no more requests\n{traceback.format_exc().rstrip()}")
            self.failure, self.state = error, "failed"


def _failure(error: Exception) -> LeanseekError:
    """Return a failure as clients are told of it: our own sentences whole, of others only the kind."""
    if isinstance(error, LeanseekError):
        return error
    return EngineError(f"the engine failed ({type(error).__name__}); the request may be sent again")
