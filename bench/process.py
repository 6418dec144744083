"""Process: a server in a process of its own, there while a block runs, and killed at its end without a warning."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rows import ROOT

PATIENCE_S = 180


def free_port() -> int:
    """Return a port that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def running(command: Sequence[str | Path], ready: str, log: Path | None = None) -> Iterator[None]:
    """Run a command; inside the block it answers.

    Args:
        command: its words.
        ready: what can be fetched once it does.
        log: file for what it says; None: nowhere.
    Raises:
        SystemExit: it ended, or does not answer in time.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open(log or os.devnull, "w") as said:
        child = subprocess.Popen(list(map(str, command)), stdout=said, stderr=said, env=environment)
    try:
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                urllib.request.urlopen(ready, timeout=5).close()
                break
            except OSError:
                if time.monotonic() > deadline_s or child.poll() is not None:
                    raise SystemExit(f"it did not start: {' '.join(map(str, command))}") from None
                time.sleep(0.1)
        yield
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()


@contextmanager
def leanseek(model: Path, *options: str | Path, log: Path | None = None) -> Iterator[str]:
    """Serve a folder as `model` in a process of its own; gives the URL."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "leanseek", "serve", model, "--port", str(port), "--name", "model", *options]
    with running(command, f"{url}/ready", log):
        yield url
