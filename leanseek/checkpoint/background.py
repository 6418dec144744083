"""Background: a thread that writes one thing at a time while the work goes on, and owns up to what went wrong."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from leanseek.errors import CheckpointError
from leanseek.log import say


class Background:
    """At most one piece of work is under way; leaving the block waits for it, also where Ctrl-C ends the block."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._work: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begin a piece of work, once the one before it is done.

        Raises:
            CheckpointError: what the one before met.
        """
        self.wait()
        self._work = self._thread.submit(work)

    def check(self) -> None:
        """Raise what the work met, if it is done; never wait.

        Raises:
            CheckpointError: what it met.
        """
        if self._work is not None and self._work.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the work.

        Raises:
            CheckpointError: what it met.
        """
        work, self._work = self._work, None
        if work is not None:
            work.result()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self.wait()
        except CheckpointError as failure:
            if error is None:
                raise
            say(f"warning: {failure}")  # the error that ends the block is told too, and comes first
        finally:
            self._thread.shutdown()
