"""Speakers: an engine and a server say the same; what a server may do wrong is told in a sentence."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from leanseek.cli.speaker import EngineSpeaker, Piece, ServerSpeaker
from leanseek.engine.engine import Engine
from leanseek.engine.request import SamplingParams
from leanseek.errors import EngineError, ServerError
from leanseek.messages import Message

QUESTION = [Message("system", "be brief"), Message("user", "start 5")]


@contextmanager
def scripted(lines: list[str], *, status: int = 200, models: Any = None) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Serve one answer; give the URL, and the requests that came."""
    came: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, json.dumps({"data": [{"id": "first"}]} if models is None else models).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            came.append({"path": self.path, "key": self.headers.get("authorization"), **body})
            self._answer(status, "".join(f"{line}\n\n" for line in lines).encode())

        def _answer(self, code: int, data: bytes) -> None:
            self.send_response(code)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", came
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def event(**delta: str) -> str:
    return "data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]})


def test_an_engine_says_what_it_draws_and_is_free_when_it_is_stopped(tiny_model, tiny_tokenizer):
    engine = Engine(tiny_model, tiny_tokenizer, max_batch=1)
    params = SamplingParams(max_tokens=12, seed=3)
    speaker = EngineSpeaker(engine, params)
    pieces = list(speaker.speak(QUESTION, thinking=True))
    expected = engine.chat.parse(engine.generate([engine.chat.prompt(QUESTION)], params)[0].token_ids)
    assert "".join(p.reasoning_content for p in pieces) == expected.reasoning_content
    assert "".join(p.content for p in pieces) == expected.content
    going = speaker.speak(QUESTION, thinking=True)
    next(going)
    assert engine.has_work
    going.close()
    assert not engine.has_work


def test_a_failing_engine_is_told(make_model, tiny_tokenizer):
    model = make_model()
    model.lm_head.weight.data.fill_(float("nan"))
    with pytest.raises(EngineError, match="not a finite number"):
        list(EngineSpeaker(Engine(model, tiny_tokenizer), SamplingParams()).speak(QUESTION, thinking=True))


def test_a_server_is_asked_and_its_stream_read():
    lines = [
        ": keep-alive",
        event(role="assistant", content=""),
        event(reasoning_content="hm"),
        event(content="7"),
        "data: [DONE]",
    ]
    with scripted(lines) as (url, came):
        speaker = ServerSpeaker(f"{url}/v1/", settings={"temperature": 0.5, "seed": 4}, api_key="secret")
        pieces = [piece for piece in speaker.speak(QUESTION, thinking=False) if piece != Piece()]
        list(speaker.speak(QUESTION, thinking=True))
    assert pieces == [Piece("hm"), Piece(content="7")] and speaker.model == "first"
    first, second = came
    assert first["path"] == "/v1/chat/completions" and first["key"] == "Bearer secret" and first["stream"] is True
    assert first["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "start 5"}]
    assert (first["thinking"], second["thinking"]) == ({"type": "disabled"}, {"type": "enabled"})
    assert (first["temperature"], first["seed"], second["seed"]) == (0.5, 4, 5)


@pytest.mark.parametrize(
    ("lines", "status", "message"),
    [
        (['{"error": {"message": "no such model"}}'], 404, "answered 404: no such model"),
        (["plain words"], 500, "answered 500: plain words"),
        (['{"error": {"message": "wrong key"}}'], 401, "wrong key; give its key with --api-key-file"),
        (['data: {"error": {"message": "it broke"}}'], 200, "it broke"),
        (["data: {"], 200, "sent what is no event"),
    ],
)
def test_what_a_server_refuses_is_told(lines, status, message):
    with scripted(lines, status=status) as (url, _), pytest.raises(ServerError, match=message):
        list(ServerSpeaker(url, model="any").speak(QUESTION, thinking=True))


@pytest.mark.parametrize("models", [[], {}, {"data": []}, {"data": [3]}])
def test_a_server_without_models_is_told(models):
    with scripted([], models=models) as (url, _), pytest.raises(ServerError, match="lists no model"):
        ServerSpeaker(url)


def test_no_server_is_told():
    with pytest.raises(ServerError, match="is the server running"):
        ServerSpeaker("http://127.0.0.1:1")
    with pytest.raises(ServerError, match="does not answer"):
        ServerSpeaker("http://[")
