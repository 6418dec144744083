"""Clients that leave, in every phase and protocol: the engine is free of them within one step, and loses no block."""

from __future__ import annotations

import json
import random
import socket
import threading

import pytest

from leanseek.engine.engine import Engine
from leanseek.engine.paged_cache import PagedCache
from tests.server.test_app import send, until


class HeldEngine(Engine):
    """A real engine whose steps wait to be allowed."""

    def __init__(self, model, tokenizer, **options) -> None:
        super().__init__(model, tokenizer, **options)
        self.allowed = threading.Semaphore(0)
        self.held, self.entered = True, 0

    def step(self):
        self.entered += 1
        if self.held:
            self.allowed.acquire()
        return super().step()

    def free(self) -> None:
        self.held = False
        self.allowed.release(1000)


@pytest.fixture
def held(make_model, tiny_tokenizer, serve):
    model = make_model(max_position_embeddings=2048)
    per_token = PagedCache.bytes_per_token(model.cache_specs())
    engine = HeldEngine(model, tiny_tokenizer, max_batch=2, cache_bytes=4096 * per_token)
    yield serve(engine), engine
    engine.free()


def leave(listener, path, body):
    text = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(text)}\r\n\r\n"
    opened = socket.create_connection(("127.0.0.1", listener.port), timeout=5)
    opened.sendall(head.encode() + text)
    return opened


def go_on(bridge, engine):
    """Allow one step, and wait until the next one has begun: all orders before it are obeyed."""
    until(lambda: engine.entered == bridge.steps + 1)
    steps = bridge.steps
    engine.allowed.release()
    until(lambda: bridge.steps == steps + 1 and (engine.entered == steps + 2 or not engine.has_work))


def bodies(text):
    chat = [{"role": "user", "content": text}]
    return {
        "/v1/chat/completions": {"messages": chat, "n": 2},
        "/v1/completions": {"prompt": [text, text + " a"], "max_tokens": 500},
        "/v1/messages": {"messages": chat, "max_tokens": 500},
        "/v1/responses": {"input": text},
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("phase", ["queued", "prefill", "decode"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"])
def test_leaving_frees_all_within_one_step(held, path, phase, stream):
    listener, engine = held
    bridge = listener.bridge
    tickets = 2 if path == "/v1/completions" else 1
    others = []
    if phase != "decode":  # somebody else runs: long prompts are then read in pieces
        n = 2 if phase == "queued" else 1
        others.append(
            leave(listener, "/v1/completions", {"prompt": "a", "n": n, "max_tokens": 1500, "logit_bias": {"1": -100}})
        )
        until(lambda: bridge.active == 1)
        go_on(bridge, engine)
    words = " ".join(random.Random(0).choices("start total largest number".split(), k=700))
    fields = bodies(words if phase == "prefill" else "start 5")[path]
    leaving = leave(listener, path, {**fields, "stream": stream, "temperature": 0})
    until(lambda: bridge.under_way == len(others) + tickets)
    for _ in range(4):
        go_on(bridge, engine)
        if phase == "prefill" and engine.scheduler.reading and engine._read_last:
            break
    assert bool(engine.scheduler.reading) == (phase == "prefill")
    assert phase == "prefill" or bool(engine.scheduler.waiting) == (phase == "queued")
    assert bridge.active == len(others) + tickets
    leaving.close()
    until(lambda: bridge._orders.qsize() == tickets)
    steps = bridge.steps
    go_on(bridge, engine)
    assert bridge.steps == steps + 1
    assert bridge.active == len(others)
    engine.check_integrity()
    assert not engine.scheduler.reading
    assert not engine.scheduler.waiting
    for one in others:
        one.close()
    engine.free()
    until(lambda: bridge.active == 0 and not engine.has_work)
    engine.check_integrity()
    assert engine.scheduler.blocks.free + len(engine.prefixes) == engine.scheduler.blocks.count
    assert send(listener, "GET", "/ready")[0] == 200
