"""Mail: carries what the engine says to the event loops, and where many listen, several tokens of each at a time.

Waking a coroutine and writing to its socket cost a server more than making a small model's token. Beginnings and ends
of replies go out at once; between them streams wait as long as writing to all of them takes.
"""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from leanseek.engine.request import Event
from leanseek.errors import LeanseekError
from leanseek.server.ticket import Ticket

# Writing to a stream takes its event loop about a half of this, so that it has a half of its time for the rest. With
# few streams it is less than any step takes, and every token goes out by itself.
WRITE_S = 150e-6

Items = Sequence[Event | LeanseekError]


class Mail:
    """Hands events over to the tickets' event loops; one thread posts.

    Args:
        lost: called with a ticket whose event loop is closed.
    """

    def __init__(self, lost: Callable[[Ticket], None]) -> None:
        self._lost = lost
        self._boxes: dict[asyncio.AbstractEventLoop, _Box] = {}

    def post(self, said: Mapping[Ticket, Items]) -> None:
        """Hand over what each ticket got, at least one item."""
        loops: dict[asyncio.AbstractEventLoop, dict[Ticket, Items]] = defaultdict(dict)
        for ticket, items in said.items():
            loops[ticket.loop][ticket] = items
        for loop, mine in loops.items():
            pressing = [ticket for ticket, items in mine.items() if _is_pressing(ticket, items)]
            for ticket in pressing:
                ticket.has_begun = True
            box = self._boxes.get(loop) or self._boxes.setdefault(loop, _Box(loop))
            try:
                box.put(mine, pressing)
            except RuntimeError:  # the loop is closed: nobody waits for these any more
                del self._boxes[loop]
                for ticket in mine:
                    self._lost(ticket)


class _Box:
    """What tickets of one event loop have not been given yet."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._lock = loop, threading.Lock()
        self._held: dict[Ticket, list[Event | LeanseekError]] = {}
        self._is_due = True  # whether the loop is to be woken for the next; else it looks by itself

    def put(self, said: Mapping[Ticket, Items], pressing: Sequence[Ticket]) -> None:
        """Take what was said, and wake the loop if it is to be given out; from any thread.

        Raises:
            RuntimeError: the loop is closed.
        """
        if self._loop.is_closed():
            raise RuntimeError("the event loop is closed")
        with self._lock:
            for ticket, items in said.items():
                self._held.setdefault(ticket, []).extend(items)
            wakes, self._is_due = self._is_due, False
        if wakes:
            self._loop.call_soon_threadsafe(self._look)
        elif pressing:
            self._loop.call_soon_threadsafe(self._give_out, pressing)

    def _look(self) -> None:
        """Give out what is there, and look again when that has been written."""
        with self._lock:
            there, self._is_due = [*self._held], not self._held
        if there:
            self._give_out(there)
            self._loop.call_later(WRITE_S * len(there), self._look)

    def _give_out(self, tickets: Iterable[Ticket]) -> None:
        for ticket in tickets:
            with self._lock:
                items = self._held.pop(ticket, None)
            if items:
                ticket.deliver(items)


def _is_pressing(ticket: Ticket, items: Items) -> bool:
    last = items[-1]
    return not ticket.has_begun or isinstance(last, LeanseekError) or last.finish_reason is not None
