"""Process: servers there while a block runs, trainers that take steps when told, stages of runs, and memory."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rows import ROOT

PATIENCE_S = 180
LEAVING_S = 10


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
        child.terminate()  # so that it ends its own processes
        try:
            child.wait(LEAVING_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextmanager
def leanseek(model: Path, *options: str | Path, log: Path | None = None) -> Iterator[str]:
    """Serve a folder as `model` in a process of its own; gives the URL."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [sys.executable, "-m", "leanseek", "serve", model, "--port", str(port), "--name", "model", *options]
    with running(command, f"{url}/ready", log):
        yield url


class Paced:
    """A process of bench/trainers.py, which takes steps when told.

    Args:
        python: that it runs in.
        name: of the trainer.
        settings: of it.
    """

    def __init__(self, python: str, name: str, settings: Mapping[str, object]) -> None:
        command = [python, str(ROOT / "bench" / "trainers.py"), name, json.dumps(settings)]
        environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": str(settings["threads"])}
        self.log = tempfile.TemporaryFile("w+")
        self.child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True, env=environment
        )

    def rate(self, steps: int) -> float:
        """Take steps; return their tokens a second.

        Raises:
            RuntimeError: the trainer failed; the last line that it said.
        """
        assert self.child.stdin is not None and self.child.stdout is not None
        try:
            print(steps, file=self.child.stdin, flush=True)
            seconds, tokens = json.loads(self.child.stdout.readline())
        except (OSError, ValueError):
            self.log.seek(0)
            said = self.log.read().strip().splitlines() or [""]
            raise RuntimeError(said[-1][:200]) from None
        return float(tokens / seconds)

    def close(self) -> None:
        """End it."""
        self.child.kill()
        self.child.wait()
        for stream in (self.child.stdin, self.child.stdout, self.log):
            if stream is not None:
                stream.close()


def stage(
    name: str, recipe: str, folder: Path, options: Mapping[str, object], *, quiet: bool = True
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Take a run up to the end of a stage; one that was stopped goes on where it was.

    Args:
        name: the command, and the stage.
        recipe: its name.
        folder: the run's.
        options: further ones of the command, such as {"train.steps": 40}.
        quiet: False: its progress is shown.
    Returns:
        The stage's figures of summary.json, and its rows of metrics.jsonl.
    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, "-m", "leanseek", name, recipe, "--run", str(folder)]
    for key, value in options.items():
        command += [f"--{key}", value if isinstance(value, str) else json.dumps(value)]
    done = subprocess.run(command, cwd=ROOT, capture_output=quiet, text=True, check=False)
    if done.returncode:
        said = f"\n{done.stdout[-2000:]}{done.stderr[-2000:]}" if quiet else ""
        raise SystemExit(f"{' '.join(command)}{said}")
    figures = json.loads((folder / "summary.json").read_text(encoding="utf-8"))[name]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return figures, [one for one in rows if one.get("stage") == name]


def in_child(work: Callable[..., Any], *given: object) -> Any:
    """Call a function of a module in a new process and return what it returns.

    Raises:
        SystemExit: it failed there; what it said stands above.
    """
    context = multiprocessing.get_context("spawn")
    answers, sent = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(sent, work, given))
    child.start()
    sent.close()  # so that a child that dies leaves an end, not a wait
    try:
        found = answers.recv()
    except EOFError:
        found = None
    child.join()
    if child.exitcode:
        raise SystemExit(f"{work.__name__} failed in a process of its own")
    return found


def _answer(sent: Any, work: Callable[..., Any], given: Sequence[object]) -> None:
    sent.send(work(*given))


def memory(name: str) -> int:
    """Return bytes of this process by their name in /proc: VmRSS now, VmHWM at most so far (not a parent's)."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name + ":"))
