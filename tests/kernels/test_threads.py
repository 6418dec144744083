"""Workers: each task once, results in order, failures told after all have ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import torch

import leanseek.kernels.threads as module
from leanseek.kernels.threads import MOST_WORKERS, available_threads, run_all, share_out


def test_results_come_in_order_from_threads_of_their_own():
    meeting = threading.Barrier(3, timeout=20)  # passes only if all three run at once

    def task(number: int):
        def work() -> tuple[int, int]:
            meeting.wait()
            return number, threading.get_ident()

        return work

    results = run_all([task(number) for number in range(3)])
    assert [number for number, _ in results] == [0, 1, 2] and len({thread for _, thread in results}) == 3


def test_one_task_runs_here():
    assert run_all([threading.get_ident]) == [threading.get_ident()]


def test_a_failure_is_told_once_all_have_ended():
    ended = threading.Event()

    def fail() -> None:
        raise ValueError("no")

    def work() -> None:
        ended.wait(0.05)
        ended.set()

    with pytest.raises(ValueError, match="no"):
        run_all([fail, work])
    assert ended.is_set()


def test_after_a_failure_the_others_are_told_to_stop():
    """The second task would wait for long: it ends because the first one's failure is told at once."""
    stopping = threading.Event()

    def fail() -> None:
        raise ValueError("no")

    for tasks in ([fail, lambda: stopping.wait(20)], [lambda: stopping.wait(20), fail]):
        stopping.clear()
        with pytest.raises(ValueError, match="no"):
            run_all(tasks, stopping.set)
        assert stopping.is_set()


def test_of_failures_that_follow_the_first_is_told():
    stopping = threading.Event()

    def follow() -> None:
        assert stopping.wait(20)
        raise KeyError("stopped")

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run_all([follow, fail, follow], stopping.set)


@pytest.mark.parametrize("delay_s", [0.0, 0.05])  # while the workers start, and while they work
def test_ctrl_c_stops_the_workers_and_is_told(delay_s):
    begun, stopping = threading.Event(), threading.Event()

    def work() -> bool:
        begun.set()
        return stopping.wait(20)

    def interrupt() -> None:
        begun.wait(20)
        time.sleep(delay_s)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_all([work, work], stopping.set)
    assert stopping.is_set()


def test_workers_inherit_the_number_of_threads():
    before = torch.get_num_threads()
    assert run_all([torch.get_num_threads] * 2) == [before] * 2


@pytest.mark.parametrize(
    ("threads", "device", "workers", "each"),
    [(1, "cpu", 1, 1), (2, "cpu", 2, 1), (5, "cpu", 5, 1), (20, "cpu", MOST_WORKERS, 2), (6, "cuda", 1, 6)],
)
def test_threads_are_shared_out_among_workers(monkeypatch, threads, device, workers, each):
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(module, "keep_memory", lambda: None)
    assert share_out(threads, device) == workers and asked == [each]


def test_without_a_number_all_that_the_process_may_use_is_used(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr(module, "keep_memory", lambda: None)
    assert available_threads() >= 1 and share_out(None, "cpu") == min(available_threads(), MOST_WORKERS)


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "350000 100000"}, 3),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_a_containers_share_of_time_counts(tmp_path, monkeypatch, files, threads):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(module, "CGROUPS", tmp_path)
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda self: list(range(8)), raising=False)
    assert module.available_threads() == threads


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc keeps memory, elsewhere it is not asked to")
def test_what_was_kept_goes_back_to_the_kernel_when_it_is_told_to():
    """In a process of its own: the settings are for good."""
    script = (
        "import psutil, torch\n"
        "from leanseek.kernels.threads import keep_memory, return_memory\n"
        "keep_memory()\n"
        "size = lambda: psutil.Process().memory_info().rss >> 20\n"
        "before, held = size(), [torch.ones(1 << 18) for _ in range(200)]\n"
        "del held\n"
        "kept = size() - before\n"
        "return_memory()\n"
        "print(kept, size() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    kept, left = map(int, done.stdout.split())
    assert kept > 150 and left < 50, "200 MiB were freed"


def test_ctrl_c_while_threads_are_started_leaves_none_at_work(monkeypatch):
    """The second thread runs, but its pool does not know of it: start() was interrupted behind the beginning."""
    start, started, begun = threading.Thread.start, [], []

    def interrupted(thread):
        start(thread)
        started.append(thread)
        if len(started) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_all([lambda: begun.append(1)] * 3)
    for thread in started:
        thread.join(20)
        assert not thread.is_alive()
    assert begun == []
