"""Chaos: many clients that leave at any moment, send nonsense or wait; nothing is lost, mixed up or left behind."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from leanseek.checkpoint.directory import save_model
from leanseek.engine.engine import Engine
from leanseek.engine.request import SamplingParams
from leanseek.messages import Message
from leanseek.server.app import Served
from leanseek.server.listener import Listener

CLIENTS = 8
QUESTIONS = [f"start {n} step +{n % 9} total" for n in range(12)]
# A long beginning in common, so that texts share blocks of the cache and wait for each other's room.
SYSTEM = "think step right left where the number and answer line of a total largest start " * 2


def body(question: str, seed: int, **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return {"messages": messages, "seed": seed, "max_tokens": 12, "temperature": 1.0, **more}


class Expected:
    """What the model says to a question, by an engine of its own."""

    def __init__(self, model, tokenizer) -> None:
        self._engine = Engine(model, tokenizer)
        self._known: dict[tuple[str, int, bool], Message] = {}
        self._lock = threading.Lock()

    def __call__(self, question: str, seed: int, thinking: bool) -> Message:
        with self._lock:
            key = (question, seed, thinking)
            if key not in self._known:
                chat = self._engine.chat
                prompt = chat.prompt([Message("system", SYSTEM), Message("user", question)], thinking=thinking)
                params = SamplingParams(max_tokens=12, seed=seed)
                ids = self._engine.generate([prompt], params)[0].token_ids
                self._known[key] = chat.parse(ids, starts_in_thinking=thinking)
            return self._known[key]


class Client:
    """One client after another, each with a fate of its own."""

    def __init__(self, port: int, expected: Expected) -> None:
        self.port, self.expected = port, expected
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._lock = threading.Lock()

    def live(self, seed: int) -> None:
        rng = random.Random(seed)
        fate = rng.choices(
            ["whole", "stream", "leave early", "leave in stream", "leave at once", "nonsense", "too long"],
            [3, 3, 2, 3, 2, 2, 1],
        )[0]
        try:
            status = getattr(self, "_" + fate.replace(" ", "_"))(rng)
        except (OSError, http.client.HTTPException) as error:
            status = f"broken ({type(error).__name__})"
            self._note_wrong(f"{fate}: {error!r}")
        with self._lock:
            self.outcomes[f"{fate}: {status}"] += 1
            if isinstance(status, int) and status >= 500:
                self.wrong.append(f"{fate}: status {status}")

    def _whole(self, rng: random.Random) -> int:
        question, seed, thinking = rng.choice(QUESTIONS), rng.randrange(4), rng.random() < 0.5
        status, data = self._post(body(question, seed, thinking=_switch(thinking)))
        if status == 200:
            message = json.loads(data)["choices"][0]["message"]
            self._compare(question, seed, thinking, message["content"], message.get("reasoning_content") or "")
        return status

    def _stream(self, rng: random.Random) -> int:
        question, seed, thinking = rng.choice(QUESTIONS), rng.randrange(4), rng.random() < 0.5
        status, data = self._post(body(question, seed, thinking=_switch(thinking), stream=True))
        if status == 200:
            content, reasoning, done = _joined(data)
            if not done:
                self._note_wrong("a stream without an end")
            self._compare(question, seed, thinking, content, reasoning)
        return status

    def _leave_early(self, rng: random.Random) -> str:
        with self._connected(body(rng.choice(QUESTIONS), rng.randrange(4), n=rng.randint(1, 3))):
            time.sleep(rng.random() * 0.05)
        return "left"

    def _leave_in_stream(self, rng: random.Random) -> str:
        with self._connected(body(rng.choice(QUESTIONS), rng.randrange(4), stream=True, max_tokens=60)) as connection:
            connection.settimeout(30)
            for _ in range(rng.randint(1, 6)):
                if not connection.recv(64):
                    break
        return "left"

    def _leave_at_once(self, rng: random.Random) -> str:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 500\r\n\r\n"
            connection.sendall(head[: rng.randint(1, len(head))])
        return "left"

    def _nonsense(self, rng: random.Random) -> int:
        value: Any = rng.choice(
            [
                b"{",
                b"[]",
                b"\xff\xfe",
                b"null",
                {},
                {"messages": []},
                body("start 1", 0, max_tokens=-1),
                body("start 1", 0, n=10**9),
                body("start 1", 0, temperature="hot"),
                body("start 1", 0, stop=["x"] * 99),
                body("start 1", 0, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": 3}}),
                body("start 1", 0, logit_bias={"99999": 1}),
                {"messages": [{"role": "nobody", "content": "x"}]},
                body("start 1", 0, model="another"),
            ]
        )
        status, _ = self._post(value)
        if status < 400:
            self._note_wrong(f"nonsense was answered {status}: {value!r}")
        return status

    def _too_long(self, rng: random.Random) -> int:
        status, _ = self._post(body("start total " * 4000, 0))
        if status != 400:
            self._note_wrong(f"too long a text was answered {status}")
        return status

    def _compare(self, question: str, seed: int, thinking: bool, content: str, reasoning: str) -> None:
        wanted = self.expected(question, seed, thinking)
        if (content, reasoning) != (wanted.content, wanted.reasoning_content or ""):
            self._note_wrong(f"{question!r} was answered {content!r}, {reasoning!r}")

    def _note_wrong(self, what: str) -> None:
        with self._lock:
            self.wrong.append(what)

    def _post(self, value: Any) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        connection.request("POST", "/v1/chat/completions", data, {"content-type": "application/json"})
        answer = connection.getresponse()
        read = answer.read()
        connection.close()
        return answer.status, read

    def _connected(self, value: Any) -> socket.socket:
        data = json.dumps(value).encode()
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        return connection


def _switch(thinking: bool) -> dict[str, str]:
    return {"type": "enabled" if thinking else "disabled"}


def _joined(data: bytes) -> tuple[str, str, bool]:
    content = reasoning = ""
    for line in data.decode().splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line.removeprefix("data: "))["choices"]:
                content += choice["delta"].get("content") or ""
                reasoning += choice["delta"].get("reasoning_content") or ""
    return content, reasoning, "data: [DONE]" in data.decode()


def run_all(client: Client, seeds: Sequence[int]) -> None:
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(client.live, seeds))


def served(model, tokenizer, blocks_bytes: int) -> Listener:
    def load(report) -> Engine:
        return Engine(model, tokenizer, max_batch=4, cache_bytes=blocks_bytes)

    return Listener(load, Served("tiny"), port=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whatever_clients_do_nothing_is_lost_or_mixed_up(make_model, tiny_tokenizer, requests=2000):
    model = make_model(max_position_embeddings=512)
    expected = Expected(model, tiny_tokenizer)
    with served(model, tiny_tokenizer, 120_000).background() as listener:
        client = Client(listener.port, expected)
        run_all(client, range(30))
        memory = psutil.Process().memory_info().rss
        run_all(client, range(30, requests))
        deadline = time.monotonic() + 20
        while (listener.bridge.active or listener.bridge.engine.has_work) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not listener.bridge.active and not listener.bridge.engine.has_work, "somebody is left behind"
        listener.bridge.engine.check_integrity()
        assert psutil.Process().memory_info().rss < memory + (200 << 20), "memory grows with the requests"
        assert listener.bridge.state == "ready" and listener.bridge.engine.prefixes.hit_tokens > 0
    assert not client.wrong, client.wrong[:5]
    assert client.outcomes["whole: 200"] and client.outcomes["stream: 200"] and client.outcomes["leave in stream: left"]


def _start(folder: Path, cache: Path) -> tuple[subprocess.Popen[str], int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "leanseek", "serve", str(folder), "--port", str(port), "--cache-dir", str(cache)]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, text=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return child, port
        except OSError:
            pass
        time.sleep(0.1)
    child.kill()
    raise AssertionError("the server did not start")


def test_killed_and_started_again_it_knows_the_conversation(tmp_path, make_model, tiny_tokenizer):
    """kill -9 amid requests, then the same conversation: only what is new is read."""
    model = make_model(max_position_embeddings=512)
    save_model(model, tmp_path / "model", tiny_tokenizer)
    expected = Expected(model, tiny_tokenizer)

    def turn(client: Client, messages: list[dict[str, str]]) -> tuple[dict[str, Any], dict[str, Any]]:
        asked = {"messages": messages, "max_tokens": 12, "seed": 1, "thinking": _switch(False)}
        status, data = client._post(asked)
        assert status == 200, data
        whole = json.loads(data)
        return whole["choices"][0]["message"], whole["usage"]

    child, port = _start(tmp_path / "model", tmp_path / "cache")
    try:
        client = Client(port, expected)
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "start 5"}]
        for question in ("and now", "again"):
            message, usage = turn(client, messages)
            messages += [{"role": "assistant", "content": message["content"]}, {"role": "user", "content": question}]
        before = usage["prompt_cache_miss_tokens"]
        time.sleep(0.3)  # the writer is a few milliseconds behind
        noise = threading.Thread(target=run_all, args=(client, range(500, 520)), daemon=True)
        noise.start()
        time.sleep(0.2)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        noise.join(60)
    finally:
        child.kill()
    child, port = _start(tmp_path / "model", tmp_path / "cache")
    try:
        _, usage = turn(Client(port, expected), messages)
        # What the last turn's reply and the new question take; the reply's last token was never read.
        assert usage["prompt_cache_hit_tokens"] > 0
        assert usage["prompt_cache_miss_tokens"] <= before + 4
    finally:
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) in (0, 130, -15)
