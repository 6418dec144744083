"""Pulse: how fast the cores are at this moment, by a small product that is always the same."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from leanseek.kernels.threads import run_all

# Virtual cores share real ones with a neighbour's. While that one is busy, which may last seconds or minutes, a product
# of this size takes 1.3 times as long, and so does most else.
SIDE, TIMES = 256, 6


class Pulse:
    """Times a product on some cores at once.

    Args:
        workers: threads, each of which has a core of its own.
        clock: seconds; `time.thread_time` where other work has the cores too.
    """

    def __init__(self, workers: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._cores = [[torch.randn(SIDE, SIDE) for _ in range(3)] for _ in range(workers)]

    def seconds(self) -> list[float]:
        """Return what each core takes for it; all of that takes two milliseconds."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return run_all([lambda core=core: self._timed(*core) for core in self._cores])  # type: ignore[misc]
        finally:
            torch.set_num_threads(threads)

    def _timed(self, left: torch.Tensor, right: torch.Tensor, out: torch.Tensor) -> float:
        # The shortest: what a thread waits for another of this process is over soon, and a neighbour is not. Into
        # memory that is there: a new thread's would come from the kernel, page by page.
        times = []
        for _ in range(TIMES):
            start = self._clock()
            torch.mm(left, right, out=out)
            times.append(self._clock() - start)
        return min(times)
