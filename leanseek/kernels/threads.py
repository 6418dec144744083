"""Threads: a few coarse workers, each on one core, in place of torch's many small parallel regions.

On a shared machine every parallel region waits for its slowest core, and a training step has thousands.
Two workers that each take half of the work meet once a step instead.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, CancelledError, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

import psutil
import torch

T = TypeVar("T")
# More workers than this would wait for Python's one interpreter lock.
MOST_WORKERS = 8
# Where a container finds its limits: the second version's files, or the first's in a folder of each kind.
CGROUPS = Path("/sys/fs/cgroup")
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def available_threads() -> int:
    """Return how many threads this process may run at once: its cores, and no more than its container's share of time.

    A share of 1.5 cores gives one thread: a second would be put aside for a third of the time, and be waited for.
    """
    process = psutil.Process()
    cores = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count() or 1
    share = _cpu_share(CGROUPS)
    return cores if share is None else max(1, min(cores, int(share)))


def _cpu_share(folder: Path) -> float | None:
    """Return the cores' time that a container may use, in cores; None: as much as there is."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None  # no such limit, or "max"


def share_out(threads: int | None, device: str) -> int:
    """Set up torch for some threads and return the number of workers among which work is split.

    Args:
        threads: to use in all; None: all that this process may.
        device: on "cuda" there is one worker: the GPU is the parallel part.
    """
    threads = threads or available_threads()
    workers = 1 if device == "cuda" else min(threads, MOST_WORKERS)
    torch.set_num_threads(max(1, threads // workers))
    keep_memory()
    return workers


def keep_memory() -> None:
    """Have the allocator keep what is freed: a step's buffers otherwise go back to the kernel and are cleared anew.

    15% of a laptop step's time. Only glibc has these settings; elsewhere nothing happens.
    """
    library = _glibc()
    if library is not None:
        library.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        library.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)
        library.mallopt(_M_TOP_PAD, 64 << 20)


def return_memory() -> None:
    """Give what the allocator kept, and nobody uses, back to the kernel: the next stage needs buffers of other sizes.

    Likewise with glibc alone.
    """
    gc.collect()
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "gnu_get_libc_version") else None


def run_all(tasks: Sequence[Callable[[], T]], stop: Callable[[], None] | None = None) -> list[T]:
    """Run tasks at once, one thread each, and return their results in order; one task runs in this thread.

    Args:
        tasks: at least one.
        stop: called as soon as a task fails or Ctrl-C comes, so that tasks that look out for it end early.
    Raises:
        Exception: that of the first task that failed, once all have ended.
        KeyboardInterrupt: Ctrl-C, once all have ended.
    """
    if len(tasks) == 1:
        return [tasks[0]()]
    count = torch.get_num_threads()

    # Ctrl-C while the threads are started may leave one of which the pool does not know, and which it does not wait
    # for: none begins before all are there.
    begin, called_off = threading.Event(), threading.Event()

    def limited(task: Callable[[], T]) -> T:
        begin.wait()
        if called_off.is_set():
            raise CancelledError
        torch.set_num_threads(count)  # a new thread starts with torch's own default
        return task()

    with ThreadPoolExecutor(len(tasks), thread_name_prefix="worker") as pool:
        try:
            futures = [pool.submit(limited, task) for task in tasks]
            begin.set()
            ended = wait(futures, return_when=FIRST_EXCEPTION).done
            return [future.result() for future in futures if future in ended]
        except BaseException:
            if not begin.is_set():
                called_off.set()
                begin.set()
            if stop is not None:
                stop()
            raise
