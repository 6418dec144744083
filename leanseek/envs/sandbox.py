"""Sandbox: runs a model's Python where it can harm nothing: no network, no files of ours, bounded in all it takes."""

from __future__ import annotations

import json
import os
import platform
import selectors
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from leanseek import variables
from leanseek.errors import TaskError

Status = Literal["ended", "failed", "time", "output"]
MEGABYTE = 1 << 20
# Bytes that are read of a pipe at once.
CHUNK = 1 << 16
# Architecture -> its number in seccomp, clone, the older calls that make a process, and those that are refused besides:
# unshare and mount, which would give room of its own, and memfd_create and shmget, whose memory no bound counts.
# Source: Linux's include/uapi/linux/audit.h and the tables of system calls.
_CALLS = {
    "x86_64": (0xC000003E, 56, (57, 58), (272, 165, 319, 29)),
    "aarch64": (0xC00000B7, 220, (), (97, 40, 279, 194)),
}
_CLONE3, _CLONE_THREAD = 435, 0x10000
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NO_RIGHT, _AGAIN, _NO_CALL = 1, 11, 38
# What runs inside before the code does: bounds that cannot be raised again, then the code, apart from our own names.
_LAUNCHER = """
import json, resource, sys
given = json.load(sys.stdin)
sys.stdin = open("/dev/null")
for name, value in given["limits"].items():
    resource.setrlimit(getattr(resource, name), (value, value))
sys.argv = ["program.py"]
exec(compile(given["code"], "program.py", "exec"), {"__name__": "__main__", "given": given["data"]})
"""


@dataclass(frozen=True)
class Limits:
    """What code may take. It is one process: where the machine lets us, none can be begun by it at all.

    Args:
        seconds: by the clock.
        cpu_seconds: of a processor.
        memory_bytes: addresses of the process.
        disk_bytes: of its private /tmp.
        output_bytes: of what it prints, errors too.
        threads: threads and processes, where they are counted.
    """

    seconds: float = 5.0
    cpu_seconds: int = 4
    memory_bytes: int = 512 * MEGABYTE
    disk_bytes: int = 16 * MEGABYTE
    output_bytes: int = MEGABYTE
    threads: int = 64


@dataclass(frozen=True)
class Result:
    """How code ended.

    Args:
        status: "ended" by itself, "failed" (an error, or killed for what it took), out of "time", or too much "output".
        output: what it printed, as text, up to the bound.
        errors: what it printed as errors.
    """

    status: Status
    output: str
    errors: str


def run(code: str, data: Any = None, limits: Limits = Limits(), folders: Sequence[str] = ()) -> Result:
    """Run Python code in a sandbox of its own, which is gone afterwards.

    Args:
        code: a program; `given` in it is `data`.
        data: for it, of what JSON has.
        limits: what it may take.
        folders: of ours that it may read.
    Raises:
        TaskError: there is no bubblewrap here, and nobody said to do without it.
    """
    # Half a character cannot be sent, and is no Python.
    code = code.encode("utf-8", "replace").decode()
    sent = json.dumps({"code": code, "data": data, "limits": _rlimits(limits)}).encode()
    kind = variables.sandbox()
    with tempfile.TemporaryDirectory(prefix="leanseek-") as folder:
        if kind == "none":
            command = [_python(), "-I", "-S", "-c", _LAUNCHER]
            return _watched(command, sent, limits, (), folder)
        with tempfile.TemporaryFile(dir=folder) as calls:
            calls.write(filter_of(platform.machine()))
            calls.seek(0)
            command = [*_bubblewrap(calls.fileno(), limits, folders), _python(), "-I", "-S", "-c", _LAUNCHER]
            return _watched(command, sent, limits, (calls.fileno(),), "/")


def usable() -> str:
    """Return why there is no sandbox on this machine, or "" if there is one."""
    try:
        result = run("print(6 * 7)")
    except TaskError as error:
        return str(error)
    return "" if result.output == "42\n" else f"bubblewrap does not run here: {result.errors.strip()[:300]}"


def filter_of(machine: str) -> bytes:
    """Return a seccomp program that lets no process be made (threads may be); on a machine not known, any.

    Memory and processor time are bounded by process: with one alone, they are bounded.

    Args:
        machine: as `platform.machine` names it.
    """
    allow = struct.pack("<HBBI", 0x06, 0, 0, _ALLOW)
    if machine not in _CALLS:
        return allow
    architecture, clone, forks, refused = _CALLS[machine]
    load, equal, set_, answer, least = 0x20, 0x15, 0x45, 0x06, 0x35
    steps: list[tuple[int, int, int, int]] = [
        (load, 0, 0, 4),  # the architecture: another one's calls have other numbers
        (equal, 1, 0, architecture),
        (answer, 0, 0, _KILL),
        (load, 0, 0, 0),  # the call's number
        (least, 0, 1, 0x40000000),  # x32's calls
        (answer, 0, 0, _ERRNO | _NO_CALL),
        (equal, 0, 1, _CLONE3),  # its flags are out of reach; the C library then takes clone
        (answer, 0, 0, _ERRNO | _NO_CALL),
    ]
    for call in forks + refused:
        error = _AGAIN if call in forks else _NO_RIGHT
        steps += [(equal, 0, 1, call), (answer, 0, 0, _ERRNO | error)]
    steps += [
        (equal, 0, 3, clone),
        (load, 0, 0, 16),  # its first argument: flags
        (set_, 1, 0, _CLONE_THREAD),
        (answer, 0, 0, _ERRNO | _AGAIN),
    ]
    return b"".join(struct.pack("<HBBI", *step) for step in steps) + allow


def _bubblewrap(calls: int, limits: Limits, folders: Sequence[str]) -> list[str]:
    """Return the command in front of the program's: a root of its own, read-only but for a small /tmp."""
    found = _found()
    size = str(limits.disk_bytes)
    roots = [path for path in ("/usr", "/lib", "/lib64", "/bin", "/sbin") if os.path.exists(path)]
    command = [found, "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--clearenv"]
    command += ["--cap-drop", "ALL", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox"]
    for path in roots:
        link = os.path.islink(path)
        command += ["--symlink", os.readlink(path), path] if link else ["--ro-bind", path, path]
    if not Path(sys.base_prefix).is_relative_to("/usr"):
        command += ["--ro-bind", sys.base_prefix, sys.base_prefix]
    for folder in folders:
        command += ["--ro-bind", folder, folder]
    command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc", "--dev", "/dev"]
    command += ["--size", "65536", "--tmpfs", "/dev/shm", "--remount-ro", "/dev", "--size", size, "--tmpfs", "/tmp"]
    command += ["--remount-ro", "/", "--chdir", "/tmp", "--setenv", "HOME", "/tmp", "--seccomp", str(calls), "--"]
    return command


@lru_cache(maxsize=1)
def _found() -> str:
    found = shutil.which("bwrap")
    if found is None:
        raise TaskError(
            "code of a model runs in bubblewrap alone, and there is no bwrap here: install it (apt install "
            "bubblewrap), or set LEANSEEK_SANDBOX=none to run such code as yourself, with bounds on time and memory"
        )
    return found


def _python() -> str:
    """Return the interpreter itself: what a virtual environment's link leads to."""
    return os.path.realpath(sys.executable)


def _rlimits(limits: Limits) -> dict[str, int]:
    return {
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_CPU": limits.cpu_seconds,
        "RLIMIT_FSIZE": limits.disk_bytes,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": limits.threads,
    }


def _watched(command: Sequence[str], sent: bytes, limits: Limits, files: Sequence[int], folder: str) -> Result:
    """Run a command to its end or to a limit's, whichever comes first."""
    pipe = subprocess.PIPE
    heard: dict[str, bytearray] = {"output": bytearray(), "errors": bytearray()}
    status: Status = "ended"
    end_s = time.monotonic() + limits.seconds
    environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    with (
        subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, pass_fds=files, cwd=folder, env=environment, bufsize=0
        ) as process,
        selectors.DefaultSelector() as waiting,
    ):
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        os.set_blocking(process.stdin.fileno(), False)
        waiting.register(process.stdout, selectors.EVENT_READ, "output")
        waiting.register(process.stderr, selectors.EVENT_READ, "errors")
        waiting.register(process.stdin, selectors.EVENT_WRITE, "input")
        try:
            while len(waiting.get_map()) and status == "ended":
                left_s = end_s - time.monotonic()
                if left_s <= 0:
                    status = "time"
                for key, _ in waiting.select(max(left_s, 0)):
                    if key.data == "input":
                        sent = sent[_written(key.fd, sent) :]
                        if not sent:
                            waiting.unregister(process.stdin)
                            process.stdin.close()
                        continue
                    piece = os.read(key.fd, CHUNK)
                    heard[key.data] += piece
                    if not piece:
                        waiting.unregister(key.fileobj)
                if sum(map(len, heard.values())) > limits.output_bytes:
                    status = "output"
            if status == "ended":
                # Its pipes are closed, but it may still run.
                process.wait(max(end_s - time.monotonic(), 0.01))
        except subprocess.TimeoutExpired:
            status = "time"
        finally:
            process.kill()  # bubblewrap's end is that of all within it
    if status == "ended" and process.returncode != 0:
        status = "failed"
    output, errors = (bytes(part[: limits.output_bytes]).decode("utf-8", "replace") for part in heard.values())
    return Result(status, output, errors)


def _written(pipe: int, sent: bytes) -> int:
    """Write what a pipe takes; a reader that has gone takes all."""
    try:
        return os.write(pipe, sent[:CHUNK])
    except BlockingIOError:
        return 0
    except BrokenPipeError:
        return len(sent)
