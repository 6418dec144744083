"""The sandbox: code gets its data, says its say, and whatever else it tries comes to nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from leanseek.envs.sandbox import Limits, filter_of, run, usable
from leanseek.errors import ConfigError, TaskError

QUICK = Limits(seconds=1.0, cpu_seconds=1)


@pytest.fixture(scope="module", autouse=True)
def needs_bubblewrap() -> None:
    if why := usable():
        pytest.skip(f"bubblewrap is needed: {why}")


def test_code_gets_its_data_and_what_it_prints_comes_back():
    result = run("import sys\nprint(given['a'] * 2)\nprint('oh', file=sys.stderr)", {"a": 21})
    assert (result.status, result.output, result.errors) == ("ended", "42\n", "oh\n")


HOSTILE = {
    "a fork bomb": "import os\nwhile True:\n    os.fork()",
    "a process": "import subprocess\nprint(subprocess.run(['/bin/echo', 'loose']))",
    "one large file": "f = open('x', 'wb')\nwhile True:\n    f.write(bytes(1 << 20))",
    "many files": "i = 0\nwhile True:\n    i += 1\n    open(f'{i}', 'wb').write(bytes(1 << 20))",
    "shared memory's files": "open('/dev/shm/x', 'wb').write(bytes(1 << 20))",
    "memory": "x = []\nwhile True:\n    x.append(bytes(1 << 24))",
    "a connection": "import socket\nsocket.create_connection(('1.1.1.1', 80), 1)\nprint('loose')",
    "another connection": "import socket\nsocket.create_connection(('127.0.0.1', 22), 1)\nprint('loose')",
    "no end": "while True:\n    pass",
    "sleep": "import time\ntime.sleep(100)",
    "output without end": "while True:\n    print('x' * 1000)",
    "silence without end": "import os\nos.close(1)\nos.close(2)\nwhile True:\n    pass",
    "the users of the machine": "print(open('/etc/passwd').read())",
    "a file outside": "open('/loose', 'w')",
    "a file among programs": "open('/usr/bin/loose', 'w')",
    "a device": "open('/dev/loose', 'w')",
    "threads without end": "import threading as t, time\nwhile 1:\n    t.Thread(None, time.sleep, None, (9,)).start()",
    "a namespace": "import ctypes, os\nassert ctypes.CDLL(None, use_errno=True).unshare(0x10000000) == 0",
    "memory without a name": "import os\nos.memfd_create('x')",
    "higher bounds": "import resource\nresource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "no text": "\x00",
    "half a character": "\ud800 = 1",
    "depth": "def f():\n    f()\nf()",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_code_comes_to_nothing_and_the_next_one_runs(name: str):
    start_s = time.monotonic()
    result = run(HOSTILE[name], limits=QUICK)
    assert result.status != "ended" and "loose" not in result.output
    assert time.monotonic() - start_s < 20 * QUICK.seconds  # an hour would be a failure, a busy machine is not
    assert len(result.output) <= QUICK.output_bytes
    assert run("print(1)").output == "1\n"


def test_what_it_kills_is_not_what_started_it():
    result = run("import os\nfor who in (os.getppid(), 1, -1):\n    os.kill(who, 9)\nprint('alive')", limits=QUICK)
    assert result.output in ("alive\n", "") and os.getppid() > 0
    assert run("print(1)").output == "1\n"


def test_it_sees_nothing_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "secret").write_text("loose")
    monkeypatch.setenv("LEANSEEK_THREADS", "3")
    result = run(
        f"import os\nprint(os.environ.get('LEANSEEK_THREADS'), os.path.exists({str(tmp_path)!r}), os.listdir('/tmp'))\n"
        "print(len([name for name in os.listdir('/proc') if name.isdigit()]) < 5)"
    )
    assert result.output == "None False []\nTrue\n"
    run("open('mine', 'w').write('x')")
    assert run("import os\nprint(os.listdir('/tmp'))").output == "[]\n"


def test_without_bubblewrap_it_refuses_unless_told(monkeypatch: pytest.MonkeyPatch):
    from leanseek.envs import sandbox

    sandbox._found.cache_clear()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TaskError, match=r"install it .* or set LEANSEEK_SANDBOX=none"):
        run("print(1)")
    assert "LEANSEEK_SANDBOX" in usable()
    monkeypatch.setenv("LEANSEEK_SANDBOX", "none")
    assert run("print(1)").output == "1\n"
    assert run("while True:\n    pass", limits=QUICK).status != "ended"
    monkeypatch.setenv("LEANSEEK_SANDBOX", "nothing")
    with pytest.raises(ConfigError, match="bubblewrap or none"):
        run("print(1)")


def test_a_machine_that_is_not_known_gets_a_filter_that_lets_all_pass():
    assert len(filter_of("riscv64")) == 8 and len(filter_of("x86_64")) % 8 == 0
    assert len(filter_of("aarch64")) > 80
