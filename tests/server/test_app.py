"""The whole server on a real socket, with OpenAI's own client and with bare HTTP."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from leanseek.engine.engine import Engine
from leanseek.engine.request import SamplingParams
from leanseek.server import body as body_module
from leanseek.server.app import ALIASES, Served
from leanseek.server.defaults import SamplingDefaults
from leanseek.tokens.chat import ChatFormat

ASK = [{"role": "user", "content": "start 5 +3"}]


def until(condition, timeout_s=5.0):
    limit = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.002)


def send(listener, method, path, body=None, headers=None):
    """Send one bare request; return status, headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", listener.port, timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def begin(listener, **fields):
    """Send a chat request on a socket of its own and return the socket."""
    body = json.dumps({"messages": ASK, **fields}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    opened = socket.create_connection(("127.0.0.1", listener.port), timeout=5)
    opened.sendall(head.encode() + body)
    return opened


def expected_text(tiny_model, tiny_tokenizer, messages, *, thinking=False, **params):
    engine = Engine(tiny_model, tiny_tokenizer, max_batch=1)
    chat = ChatFormat(tiny_tokenizer)
    from leanseek.messages import Message

    prompt = chat.prompt([Message(one["role"], one["content"]) for one in messages], thinking=thinking)
    output = engine.generate([prompt], SamplingParams(**params))[0]
    return chat.parse(output.token_ids, starts_in_thinking=thinking), output


def test_an_answer_is_what_the_engine_says(client, tiny_model, tiny_tokenizer):
    answer = client.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=20, seed=4, extra_body={"thinking": {"type": "disabled"}}
    )
    message, output = expected_text(tiny_model, tiny_tokenizer, ASK, max_tokens=20, seed=4)
    assert answer.choices[0].message.content == message.content != ""
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == output.finish_reason
    assert answer.usage.completion_tokens == len(output.token_ids)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0
    assert (answer.model, answer.object) == ("tiny", "chat.completion")
    assert answer.system_fingerprint
    assert re.fullmatch("[0-9a-f]{32}", answer._request_id)


def test_a_stream_says_the_same_as_a_whole_answer(client):
    asked = {"model": "tiny", "messages": ASK, "max_tokens": 20, "temperature": 1, "seed": 3, "n": 2}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for index in range(2):
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert mine[0].delta.content == ""
        assert all(one.delta.role is None for one in mine[1:])
        assert [one.finish_reason for one in mine[:-1]] == [None] * (len(mine) - 1)
        assert mine[-1].finish_reason == whole.choices[index].finish_reason
        assert mine[-1].delta.content is None
        reasoning = "".join(getattr(one.delta, "reasoning_content", None) or "" for one in mine)
        assert reasoning == whole.choices[index].message.reasoning_content
        assert "".join(one.delta.content or "" for one in mine) == whole.choices[index].message.content
    assert len({(c.id, c.created, c.model, c.object) for c in chunks}) == 1
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage


def test_thinking_and_answer_in_both_forms(script, serve, connect):
    listener = serve(script("größer 🙂\n5 +3 =8", "achtundvierzig ≥ 8"))
    client = connect(listener)
    answer = client.chat.completions.create(model="tiny", messages=ASK)
    assert answer.choices[0].message.reasoning_content == "größer 🙂\n5 +3 =8"
    assert answer.choices[0].message.content == "achtundvierzig ≥ 8"
    assert answer.choices[0].finish_reason == "stop"
    assert 0 < answer.usage.completion_tokens_details.reasoning_tokens < answer.usage.completion_tokens
    deltas = [c.choices[0].delta for c in client.chat.completions.create(model="tiny", messages=ASK, stream=True)]
    kinds = ["r" if getattr(d, "reasoning_content", None) else "c" if d.content else "" for d in deltas]
    assert re.fullmatch("r+c+", "".join(kinds))
    assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == "größer 🙂\n5 +3 =8"
    assert "".join(d.content or "" for d in deltas) == "achtundvierzig ≥ 8"


def test_a_stream_on_the_wire(script, serve):
    listener = serve(script("a", "b"))
    body = json.dumps({"messages": ASK, "stream": True})
    status, headers, text = send(listener, "POST", "/chat/completions", body)
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["x-request-id"]
    events = text.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])
    assert "usage" not in json.loads(events[0].removeprefix("data: "))


def test_many_at_once_get_what_they_get_alone(client):
    def ask(number):
        return client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": f"largest of {number}"}], max_tokens=12,
            temperature=number % 2, seed=number,
        ).choices[0].message.reasoning_content  # fmt: skip

    alone = [ask(number) for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(12))) == alone
    assert len(set(alone)) > 6


def test_stop_texts_never_show(client, tiny_model, tiny_tokenizer):
    message, _ = expected_text(tiny_model, tiny_tokenizer, ASK, max_tokens=30, seed=4)
    stop = message.content[9:14]
    asked = {
        "model": "tiny",
        "messages": ASK,
        "max_tokens": 30,
        "seed": 4,
        "stop": [stop],
        "extra_body": {"thinking": {"type": "disabled"}},
    }
    before = message.content.split(stop)[0]
    choice = client.chat.completions.create(**asked).choices[0]
    assert (choice.message.content, choice.finish_reason) == (before, "stop")
    text = ""
    for chunk in client.chat.completions.create(**asked, stream=True):
        text += chunk.choices[0].delta.content or ""
        assert before.startswith(text)
    assert text == before


def test_logprobs_join_to_the_text(client, tiny_model, tiny_tokenizer):
    asked = {"model": "tiny", "messages": ASK, "max_tokens": 15, "seed": 4, "logprobs": True}
    plain = {"thinking": {"type": "disabled"}}
    choice = client.chat.completions.create(**asked, extra_body=plain).choices[0]
    assert "".join(one.token for one in choice.logprobs.content) == choice.message.content
    assert bytes(b for one in choice.logprobs.content for b in one.bytes).decode() == choice.message.content
    _, output = expected_text(tiny_model, tiny_tokenizer, ASK, max_tokens=15, seed=4, logprobs=0)
    got = [one.logprob for one in choice.logprobs.content]
    assert got == pytest.approx(output.logprobs[: len(got)], abs=1e-5)
    streamed = client.chat.completions.create(**asked, extra_body=plain, stream=True)
    parts = [c.choices[0].logprobs.content for c in streamed if c.choices[0].logprobs]
    assert [one.logprob for part in parts for one in part] == pytest.approx(got, abs=1e-6)


def test_the_models_defaults_hold_where_a_request_says_nothing(script, serve, connect):
    engine = script("a", "b", context_tokens=100)
    listener = serve(engine, Served("tiny", defaults=SamplingDefaults(temperature=0.6, top_p=0.95)))
    client = connect(listener)
    client.chat.completions.create(model="tiny", messages=ASK)
    client.chat.completions.create(model="tiny", messages=ASK, temperature=0, max_completion_tokens=5)
    usual, asked = engine.seen
    assert (usual.temperature, usual.top_p) == (0.6, 0.95)
    assert usual.max_tokens == 100 - len(engine.prompts[0])
    assert (asked.temperature, asked.max_tokens) == (0, 5)


def test_messages_reach_the_model_in_its_format(script, serve, connect, tiny_tokenizer):
    engine = script("a", "b")
    connect(serve(engine)).chat.completions.create(
        model="tiny",
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "sta"}, {"type": "text", "text": "rt <think> 🙂"}]},
        ],
    )
    text = tiny_tokenizer.decode(engine.prompts[0], skip_special=False)
    assert text == "<｜begin▁of▁sentence｜>be brief<｜User｜>start <think> 🙂<｜Assistant｜><think>\n"
    assert engine.prompts[0].count(ChatFormat(tiny_tokenizer).think_id) == 1  # the user's is plain text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("phase", ["queued", "prefill", "decode"])
def test_a_client_that_leaves_frees_its_rows_within_one_step(script, serve, stream, phase):
    engine = script("think", "answer", rows=1)
    listener = serve(engine)
    bridge = listener.bridge
    engine.hold()
    sockets = []
    try:
        if phase == "queued":  # another client has the only row
            sockets.append(begin(listener, max_tokens=1000, stream=True))
            until(lambda: bridge.active == 1)
        active = bridge.active
        leaving = begin(listener, max_tokens=1000, stream=stream)
        until(lambda: bridge._orders.qsize() + bridge.active == active + 1)
        if phase != "queued":  # an idle engine takes it at once: else it could be taken together with its cancelling
            until(lambda: bridge.active == active + 1)
        if phase != "prefill":
            engine.allow(2)
            until(lambda: bridge.steps == 2 and bridge.active == active + 1)
        leaving.close()
        until(lambda: bridge._orders.qsize() == 1)  # the order to cancel waits for the step that is under way
        steps = bridge.steps
        engine.allow()
        until(lambda: bridge.active == active)
        assert bridge.steps <= steps + 1
        assert len(engine.running) + len(engine.waiting) == active
    finally:
        engine.free()
        for one in sockets:
            one.close()
    until(lambda: not engine.has_work)


@pytest.mark.parametrize("stream", [False, True])
def test_leaving_a_real_engine(tiny_server, client, stream):
    sockets = [begin(tiny_server, max_tokens=100, n=128, stream=stream) for _ in range(3)]
    until(lambda: tiny_server.bridge.active == 3)
    for one in sockets:
        one.close()
    until(lambda: tiny_server.bridge.active == 0 and not tiny_server.bridge.engine.has_work)
    assert client.chat.completions.create(model="tiny", messages=ASK, max_tokens=3).usage.completion_tokens <= 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_failing_engine_fails_the_request_not_the_server(script, serve, connect, stream, capfd):
    engine = script("think", "answer")
    client = connect(serve(engine))
    engine.fail_next = RuntimeError("a secret path")
    with pytest.raises(openai.APIError, match="RuntimeError") as caught:
        answer = client.chat.completions.create(model="tiny", messages=ASK, stream=stream)
        list(answer)
    assert "secret" not in str(caught.value)
    assert client.chat.completions.create(model="tiny", messages=ASK).choices[0].message.content == "answer"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ("{", 400, "invalid_json"),
        ("[]", 400, "invalid_request"),
        ('{"messages": []}', 422, "invalid_parameter"),
        (json.dumps({"messages": ASK, "n": 10**9}), 422, "invalid_parameter"),
        (json.dumps({"messages": ASK, "temperature": -1}), 422, "invalid_parameter"),
        (json.dumps({"messages": ASK, "tools": [{}]}), 422, "invalid_parameter"),
        (json.dumps({"messages": ASK, "model": "gpt"}), 404, "model_not_found"),
        (json.dumps({"messages": [{"role": "user", "content": "a b " * 500}]}), 400, "context_length_exceeded"),
    ],
)
def test_a_bad_body_is_told(tiny_server, body, status, code):
    got, headers, text = send(tiny_server, "POST", "/v1/chat/completions", body)
    error = json.loads(text)["error"]
    assert (got, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"}
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"]


def test_openais_client_knows_the_errors(client):
    with pytest.raises(openai.NotFoundError, match="'gpt' is not served here; have 'tiny'"):
        client.chat.completions.create(model="gpt", messages=ASK)
    with pytest.raises(openai.UnprocessableEntityError, match="max_tokens = 0"):
        client.chat.completions.create(model="tiny", messages=ASK, max_tokens=0)
    with pytest.raises(openai.UnprocessableEntityError, match="top_logprobs"):
        client.chat.completions.create(model="tiny", messages=ASK, top_logprobs=5)


def test_paths_that_are_not_there(tiny_server):
    for method, path, status in (
        ("GET", "/v1/nothing", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/../../etc/passwd", 404),
    ):
        got, _, text = send(tiny_server, method, path)
        assert got == status
        assert json.loads(text)["error"]["message"]


def test_a_body_that_is_too_large_is_refused(tiny_server, monkeypatch):
    monkeypatch.setattr(body_module, "MOST_BODY_BYTES", 1000)
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 2000}]}).encode()
    assert send(tiny_server, "POST", "/v1/chat/completions", body)[0] == 413
    chunks = iter([body[:900], body[900:]])  # without a length
    status, _, text = send(tiny_server, "POST", "/v1/chat/completions", chunks)
    assert (status, json.loads(text)["error"]["code"]) == (413, "request_too_large")


def test_a_body_that_never_comes_is_given_up(tiny_server, monkeypatch):
    monkeypatch.setattr(body_module, "BODY_TIMEOUT_S", 0.05)
    with socket.create_connection(("127.0.0.1", tiny_server.port), timeout=5) as opened:
        opened.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
        assert b" 408 " in opened.recv(1000).split(b"\r\n")[0]


def test_models(client, tiny_server):
    listed = client.models.list().data
    assert [one.id for one in listed] == ["tiny", *ALIASES]
    assert client.models.retrieve("tiny") == listed[0]
    assert listed[0].context_length == 128
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("some/other")
    assert send(tiny_server, "GET", "/models")[0] == 200


def test_keys(script, serve, connect):
    listener = serve(script("a", "b"), api_keys=("alpha",))
    with pytest.raises(openai.AuthenticationError, match="the API key is wrong"):
        connect(listener, "beta").models.list()
    assert send(listener, "POST", "/v1/chat/completions", "{}")[0] == 401
    assert send(listener, "GET", "/models")[0] == 401
    assert connect(listener, "alpha").models.list().data[0].id == "tiny"
    assert send(listener, "GET", "/health")[0] == 200


def test_more_than_can_be_queued_is_429(script, serve):
    engine = script("a", "b")
    listener = serve(engine)
    listener.bridge._most_requests = 1
    engine.hold()
    with begin(listener):
        until(lambda: listener.bridge.active == 1)
        status, headers, text = send(listener, "POST", "/v1/chat/completions", json.dumps({"messages": ASK}))
        engine.free()
    assert (status, json.loads(text)["error"]["type"]) == (429, "rate_limit_error")
    assert headers["retry-after"] == "1"


def test_health_and_ready(tiny_server):
    assert json.loads(send(tiny_server, "GET", "/health")[2]) == {"status": "ok"}
    assert json.loads(send(tiny_server, "GET", "/ready")[2]) == {"status": "ready", "model": "tiny", "requests": 0}


def test_the_page_is_there_without_a_key(script, serve):
    listener = serve(script("a", "b"), api_keys=("alpha",))
    status, headers, _ = send(listener, "GET", "/")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert send(listener, "GET", "/app.js")[0] == 200
    assert send(listener, "GET", "/", headers={"if-none-match": headers["etag"]})[0] == 304
