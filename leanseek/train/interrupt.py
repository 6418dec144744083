"""Interrupt: Ctrl-C as a wish that is granted between two steps, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from leanseek.log import say


class Interrupt:
    """Whether the person at the terminal wants to stop."""

    def __init__(self) -> None:
        self.wanted = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: note the first, obey the second at once."""
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True
        say("stopping after this step; the state is saved first (Ctrl-C again: at once, back to the last checkpoint)")


@contextmanager
def interrupts() -> Iterator[Interrupt]:
    """Catch SIGINT and SIGTERM inside the block; outside the main thread, nothing is caught."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
