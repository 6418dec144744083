"""What who runs a server sees: metrics, the access log, full queues, keep-alive, stopping, TLS, origins."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time

import pytest

from leanseek.engine.engine import Engine
from leanseek.engine.paged_cache import PagedCache
from leanseek.errors import UsageError
from leanseek.server import listener as listener_module
from leanseek.server import protocol, sse, ticket
from leanseek.server.app import Served
from leanseek.server.listener import Listener
from tests.server.invariants import check_chat_stream, events_of
from tests.server.test_app import ASK, begin, send, until

BODY = json.dumps({"messages": ASK})


def metrics(listener):
    text = send(listener, "GET", "/metrics")[2].decode()
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            assert re.fullmatch(r'[a-z_]+(\{([a-z]+="[^"]*",?)+\})?', name), line
            found[name] = float(value)
    return text, found


def test_metrics(make_model, tiny_tokenizer, serve):
    model = make_model()
    cache_bytes = 1024 * PagedCache.bytes_per_token(model.cache_specs())
    listener = serve(Engine(model, tiny_tokenizer, max_batch=4, cache_bytes=cache_bytes, drafts=1))
    for _ in range(2):
        body = json.dumps({"messages": [{"role": "user", "content": "total 5 " * 12}], "max_tokens": 8, "seed": 1})
        usage = json.loads(send(listener, "POST", "/v1/chat/completions", body)[2])["usage"]
    send(listener, "POST", "/v1/chat/completions", "{")
    send(listener, "GET", "/v1/nothing")
    text, found = metrics(listener)
    assert found['leanseek_http_requests_total{path="/v1/chat/completions",status="200"}'] == 2
    assert found['leanseek_http_requests_total{path="/v1/chat/completions",status="400"}'] == 1
    assert found['leanseek_http_requests_total{path="other",status="404"}'] == 1
    assert found["leanseek_prompt_tokens_total"] == 2 * usage["prompt_tokens"]
    assert found["leanseek_completion_tokens_total"] == 2 * usage["completion_tokens"]
    assert found["leanseek_prompt_tokens_cached_total"] == usage["prompt_cache_hit_tokens"] > 0
    assert found["leanseek_time_to_first_token_seconds_count"] == 2
    assert found["leanseek_inter_token_latency_seconds_count"] > 2
    assert found["leanseek_request_duration_seconds_count"] == 2
    assert found["leanseek_engine_busy_seconds_total"] > 0
    states = [found[f'leanseek_cache_blocks{{state="{state}"}}'] for state in ("free", "used", "remembered")]
    assert states[0] + states[1] == 32
    assert 0 < states[2] <= states[1]
    assert found["leanseek_prefix_hit_tokens_total"] > 0
    assert found["leanseek_drafted_tokens_total"] >= found["leanseek_accepted_tokens_total"]
    assert (found["leanseek_batch_size"], found["leanseek_replies_waiting"], found["leanseek_preempted_total"]) == (
        0,
        0,
        0,
    )
    for name in {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}:
        assert text.count(f"# TYPE {name} ") == text.count(f"# HELP {name} ") == 1
    buckets = [value for name, value in found.items() if name.startswith("leanseek_time_to_first_token_seconds_bucket")]
    assert buckets == sorted(buckets)


def test_metrics_of_a_server_that_is_not_ready_and_their_key(script, serve):
    listener = serve(script("a", "b"), api_keys=("alpha",))
    assert send(listener, "GET", "/metrics")[0] == 401
    assert send(listener, "GET", "/metrics", headers={"authorization": "Bearer alpha"})[0] == 200


def test_the_access_log_has_counts_and_no_contents(script, serve, capfd):
    listener = serve(script("secret thought", "secret answer"), access_log=True)
    body = json.dumps({"messages": [{"role": "user", "content": "secret question"}], "stream": True})
    _, headers, _ = send(listener, "POST", "/v1/chat/completions", body)
    send(listener, "GET", "/v1/secret")
    told = ""

    def both():  # a line is written when its answer is away
        nonlocal told
        told += capfd.readouterr().err
        return told.count("{") == 2

    until(both)
    lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    assert "secret" not in json.dumps(lines)
    line, other = sorted(lines, key=lambda one: one["path"] == "other")  # the second may be written first
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/chat/completions", 200)
    assert line["request_id"] == headers["x-request-id"]
    assert line["completion_tokens"] > 5 and line["prompt_tokens"] > 3 and line["seconds"] >= 0
    assert other["status"] == 404


def test_a_full_queue_says_when_to_come_again(script, serve):
    engine = script("a", "b", rows=1)
    listener = serve(engine, most_requests=3)
    send(listener, "POST", "/v1/chat/completions", BODY)
    listener.bridge.tally.interval_s = 7.0  # as if requests took so long
    engine.hold()
    opened = [begin(listener) for _ in range(3)]
    until(lambda: listener.bridge.under_way == 3)
    status, headers, text = send(listener, "POST", "/v1/chat/completions", BODY)
    engine.free()
    assert (status, headers["retry-after"]) == (429, "21")
    assert json.loads(text)["error"]["code"] == "overloaded"
    for one in opened:
        one.close()


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_whose_turn_does_not_come_is_dropped(script, serve, stream):
    engine = script("think", "answer", rows=1)
    listener = serve(engine, queue_s=0.1)
    bridge = listener.bridge
    engine.hold()
    with begin(listener, max_tokens=50, seed=1) as first:
        until(lambda: bridge.active == 1)
        with begin(listener, stream=stream, n=2) as late:
            until(lambda: bridge.under_way == 2)
            engine.allow(1)  # the first one has begun, and may take as long as it wants
            until(lambda: bridge.active == 2)
            time.sleep(0.15)
            engine.allow(2)
            answer = http.client.HTTPResponse(late)
            answer.begin()
            said = answer.read()
        assert bridge.active == 1 and not engine.waiting
        engine.free()
        answer_of_first = http.client.HTTPResponse(first)
        answer_of_first.begin()
        assert json.loads(answer_of_first.read())["choices"][0]["message"]["content"] == "answer"
    if stream:
        error = events_of(said)[-1]["error"]
    else:
        assert answer.status == 503 and int(answer.headers["retry-after"]) >= 1
        error = json.loads(said)["error"]
    assert error["code"] == "queue_timeout" and "has waited 0.1 s" in error["message"]
    assert metrics(listener)[1]['leanseek_replies_total{reason="queue_timeout"}'] == 2


def test_prompts_of_one_request_wait_for_each_other(script, serve):
    engine = script("think", "answer", rows=1)
    listener = serve(engine, queue_s=0.05)
    engine.hold()
    got = []
    body = json.dumps({"prompt": ["a", "b", "c"], "max_tokens": 2})
    thread = threading.Thread(target=lambda: got.append(send(listener, "POST", "/v1/completions", body)))
    thread.start()
    until(lambda: listener.bridge.under_way == 3)
    for step in range(6):
        time.sleep(0.06)
        engine.allow(1)
        until(lambda step=step: listener.bridge.steps == step + 1)
    thread.join(5)
    assert got[0][0] == 200 and len(json.loads(got[0][2])["choices"]) == 3


def test_waiting_ends_in_a_real_engine_too(make_model, tiny_tokenizer, serve):
    model = make_model()
    cache_bytes = 1024 * PagedCache.bytes_per_token(model.cache_specs())
    engine = Engine(model, tiny_tokenizer, max_batch=1, cache_bytes=cache_bytes)
    stepped, engine.step = engine.step, lambda: (time.sleep(0.01), stepped())[1]
    listener = serve(engine, queue_s=0.05)
    endless = {"max_tokens": 100, "logit_bias": {str(tiny_tokenizer.eos_id): -100}}
    with begin(listener, **endless) as first:
        until(lambda: engine.running == 1)
        status, headers, text = send(listener, "POST", "/v1/chat/completions", BODY)
        assert (status, json.loads(text)["error"]["code"]) == (503, "queue_timeout")
        assert "retry-after" in headers and listener.bridge.active == 1
        answer = http.client.HTTPResponse(first)
        answer.begin()
        assert json.loads(answer.read())["usage"]["completion_tokens"] == 100
    until(lambda: not engine.has_work)
    engine.check_integrity()


def test_silence_is_broken(script, serve, monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.02)
    engine = script("a", "b")
    listener = serve(engine)
    engine.hold()
    with begin(listener) as whole, begin(listener, stream=True) as stream:
        time.sleep(0.15)
        engine.free()
        answers = []
        for one in (whole, stream):
            one.settimeout(5)
            answer = http.client.HTTPResponse(one)
            answer.begin()
            assert answer.status == 200
            answers.append(answer.read())
    assert answers[0].startswith(b"\n\n")
    assert json.loads(answers[0])["choices"][0]["message"]["content"] == "b"
    assert answers[1].count(b": keep-alive\n\n") > 2
    check_chat_stream(answers[1])


def test_a_failure_after_silence_is_told_in_the_body(script, serve, monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.02)
    engine = script("a", "b")
    listener = serve(engine)
    engine.hold()
    with begin(listener) as opened:
        time.sleep(0.08)
        engine.fail_next = RuntimeError("no")
        engine.free()
        answer = http.client.HTTPResponse(opened)
        answer.begin()
        assert json.loads(answer.read())["error"]["type"] == "server_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_second_signal_ends_replies_where_they_are(script, stream):
    engine = script("think " * 50, "answer")
    listener = Listener(lambda report: engine, Served("tiny"), port=0)
    engine.hold()
    got = []

    def client():
        listener.bridge.wait(5)
        with begin(listener, max_tokens=1000, stream=stream) as opened:
            until(lambda: listener.bridge.active == 1)
            engine.allow(5)
            until(lambda: listener.bridge.steps == 5)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.15)
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: listener.bridge._orders.qsize() == 1)
            engine.allow(1)
            answer = http.client.HTTPResponse(opened)
            answer.begin()
            got.append(answer.read())

    thread = threading.Thread(target=client)
    thread.start()
    listener.run()
    thread.join(5)
    if stream:
        (message,) = check_chat_stream(got[0])
    else:
        choice = json.loads(got[0])["choices"][0]
        message = {**choice["message"], "finish_reason": choice["finish_reason"]}
    assert message["finish_reason"] == "insufficient_system_resource"
    assert message["reasoning_content"].startswith("think")


def test_sigterm_finishes_what_is_under_way(script):
    engine = script("think", "answer")
    listener = Listener(lambda report: engine, Served("tiny"), port=0)
    engine.hold()
    got = []

    def client():
        listener.bridge.wait(5)
        with begin(listener) as opened:
            until(lambda: listener.bridge.active == 1)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.15)
            engine.free()
            answer = http.client.HTTPResponse(opened)
            answer.begin()
            got.append(json.loads(answer.read())["choices"][0]["message"]["content"])

    thread = threading.Thread(target=client)
    thread.start()
    listener.run()
    thread.join(5)
    assert got == ["answer"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_done_when_draining_is_over_ends_where_it_is(script, stream):
    engine = script("think " * 50, "answer")
    listener = Listener(lambda report: engine, Served("tiny"), port=0, drain_s=0.3)
    engine.hold()
    got = []

    def client():
        listener.bridge.wait(5)
        with begin(listener, max_tokens=1000, stream=stream) as opened, begin(listener, stream=stream) as late:
            until(lambda: listener.bridge.under_way == 2)
            engine.allow(5)
            until(lambda: listener.bridge.steps == 5)
            os.kill(os.getpid(), signal.SIGTERM)
            until(lambda: listener.bridge._orders.qsize() == 1)
            engine.allow(1)
            for one in (opened, late):
                answer = http.client.HTTPResponse(one)
                answer.begin()
                got.append(answer.read())

    thread = threading.Thread(target=client)
    thread.start()
    began_s = time.monotonic()
    listener.run()
    assert time.monotonic() - began_s < 10  # not the two minutes of the default
    thread.join(5)
    assert len(got) == 2
    for one in got:
        if stream:
            (message,) = check_chat_stream(one)
        else:
            message = json.loads(one)["choices"][0]
        assert message["finish_reason"] == "insufficient_system_resource"


def test_a_client_that_does_not_take_its_answer_does_not_keep_a_server_from_stopping(script, monkeypatch):
    monkeypatch.setattr(listener_module, "TAKING_S", 0.2)
    engine = script("think " * 50, "answer")
    engine.script = [token for token in engine.script if token != engine.tokenizer.eos_id]
    engine.max_context_tokens = 1 << 20
    listener = Listener(lambda report: engine, Served("tiny"), port=0, drain_s=0.2)
    with listener.background(), begin(listener, stream=True, max_tokens=1 << 19, logprobs=True, top_logprobs=3):
        until(lambda: listener.bridge.steps > 3000, 20)
        began_s = time.monotonic()
        listener.stop()
        listener.bridge._thread.join(10)
    assert time.monotonic() - began_s < 10


def test_a_client_that_reads_slowly_holds_little_and_loses_its_request(script, serve, monkeypatch):
    monkeypatch.setattr(ticket, "MOST_BEHIND", 200)
    engine = script("think " * 50, "answer")
    engine.script = [token for token in engine.script if token != engine.tokenizer.eos_id]
    engine.max_context_tokens = 1 << 20
    listener = serve(engine)
    for n in (1, 2):
        with begin(listener, stream=True, max_tokens=1 << 18, n=n, logprobs=True, top_logprobs=3) as opened:
            opened.settimeout(30)
            said = opened.recv(64)  # it has begun, and may be over before a look at `active` could see it
            # Nothing more is taken. The sockets are full some time; from then on tokens wait, so many and no more.
            until(lambda: listener.bridge.active == 0, 30)
            while part := opened.recv(1 << 16):
                said += part
                if b'"client_too_slow"' in said[-4096:]:
                    break
        assert b'"client_too_slow"' in said
    assert send(listener, "GET", "/ready")[0] == 200


def test_a_client_that_takes_nothing_at_all_is_given_up(script, serve, monkeypatch):
    monkeypatch.setattr(sse, "TAKING_TIMEOUT_S", 0.3)
    engine = script("think " * 50, "answer")
    engine.script = [token for token in engine.script if token != engine.tokenizer.eos_id]
    engine.max_context_tokens = 1 << 20
    listener = serve(engine)
    with begin(listener, stream=True, max_tokens=1 << 19, logprobs=True, top_logprobs=3) as opened:
        assert opened.recv(64), "it has begun"
        until(lambda: listener.bridge.active == 0, 30)
    assert send(listener, "GET", "/ready")[0] == 200


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-keyout",
            key,
            "-out",
            cert,
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


def test_tls(script, serve, certificate):
    listener = serve(script("a", "b"), tls=certificate)
    assert listener.url.startswith("https://")
    context = ssl.create_default_context(cafile=certificate[0])
    connection = http.client.HTTPSConnection("127.0.0.1", listener.port, timeout=5, context=context)
    connection.request("POST", "/v1/chat/completions", BODY)
    assert json.loads(connection.getresponse().read())["choices"][0]["message"]["content"] == "b"
    connection.close()


def test_a_certificate_that_is_none(tmp_path, certificate):
    (tmp_path / "cert.pem").write_text("nonsense")
    for tls in ((tmp_path / "cert.pem", certificate[1]), (tmp_path / "missing", certificate[1])):
        with pytest.raises(UsageError, match="tls-cert"):
            Listener(lambda report: None, Served("tiny"), port=0, tls=tls)


def test_origins(script, serve):
    asked = {"origin": "https://example.com", "access-control-request-method": "POST"}
    closed = serve(script("a", "b"), api_keys=("alpha",))
    status, headers, _ = send(closed, "OPTIONS", "/v1/chat/completions", headers=asked)
    assert status == 401 and "access-control-allow-origin" not in headers
    listener = serve(script("a", "b"), api_keys=("alpha",), cors_origins=("https://example.com",))
    asked["access-control-request-headers"] = "authorization"
    status, headers, _ = send(listener, "OPTIONS", "/v1/chat/completions", headers=asked)
    assert (status, headers["access-control-allow-origin"]) == (200, "https://example.com")
    other = {**asked, "origin": "https://example.org"}
    assert "access-control-allow-origin" not in send(listener, "OPTIONS", "/v1/models", headers=other)[1]
    got = {"origin": "https://example.com", "authorization": "Bearer alpha"}
    assert send(listener, "GET", "/v1/models", headers=got)[1]["access-control-allow-origin"] == "https://example.com"


def test_names_of_deepseeks_api(script, serve):
    listener = serve(script("a", "b"))
    balance = json.loads(send(listener, "GET", "/user/balance")[2])
    assert balance["is_available"] is True
    assert set(balance["balance_infos"][0]) == {"currency", "total_balance", "granted_balance", "topped_up_balance"}
    for path in ("/chat/completions", "/v1/chat/completions", "/beta/chat/completions", "/beta/v1/chat/completions"):
        assert send(listener, "POST", path, BODY)[0] == 200
    for path in ("/models", "/v1/models", "/beta/models", "/v1/models/deepseek-chat"):
        assert send(listener, "GET", path)[0] == 200


def test_headers_have_a_limit(script, serve):
    listener = serve(script("a", "b"))
    try:
        assert send(listener, "GET", "/health", headers={"x-large": "a" * (128 << 10)})[0] in (400, 431)
    except ConnectionError:  # closed before all of it was sent
        pass
    assert send(listener, "GET", "/health")[0] == 200


def refuses_endless(listener, begun):
    """Go on with a header that does not end, and see that it is refused and nobody else is."""
    with socket.create_connection(("127.0.0.1", listener.port), timeout=5) as opened:
        opened.sendall(begun)
        try:
            for _ in range(64):
                opened.sendall(b"a" * 4096)
            said = opened.recv(100)
        except ConnectionError:
            said = b""
    assert said == b"" or said.startswith(b"HTTP/1.1 431 ")
    assert send(listener, "GET", "/health")[0] == 200


def test_a_head_in_many_small_parts_has_a_limit(script, serve):
    listener = serve(script("a", "b"))
    refuses_endless(listener, b"GET /health HTTP/1.1\r\nhost: localhost\r\nx-endless: ")


def test_a_full_server_refuses_before_it_reads_a_body(script, serve):
    engine = script("a", "b")
    listener = serve(engine, most_requests=1)
    engine.hold()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n"
    with begin(listener, stream=True):
        until(lambda: listener.bridge.active == 1)
        with socket.create_connection(("127.0.0.1", listener.port), timeout=5) as opened:
            opened.sendall(head)
            assert opened.recv(1000).startswith(b"HTTP/1.1 429 ")
            opened.sendall(
                b"x" * 1000 + b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
            )  # and the connection goes on
            assert opened.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert send(listener, "GET", "/health")[0] == 200
        engine.free()


@pytest.mark.parametrize("said", [b"", b"GET /health HTTP/1.1\r\nX-Slow: "])
def test_a_client_that_never_says_what_it_wants_is_dropped(script, serve, monkeypatch, said):
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.05)
    listener = serve(script("a", "b"))
    with socket.create_connection(("127.0.0.1", listener.port), timeout=5) as opened:
        opened.sendall(said)
        assert opened.recv(100) == b""


def answered(opened):
    """Return a whole answer, which is an object of JSON."""
    said = b""
    while not said.endswith(b"}"):
        said += opened.recv(1000)
    return said


@pytest.mark.parametrize("said", [b"G", b"POST /health HTTP/1.1\r\nX-Slow: "])
def test_neither_is_one_that_said_something_before(script, serve, monkeypatch, said):
    listener = serve(script("a", "b"))
    with socket.create_connection(("127.0.0.1", listener.port), timeout=30) as opened:
        opened.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert answered(opened).startswith(b"HTTP/1.1 200 ")
        monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.05)
        opened.sendall(said)
        assert opened.recv(100) == b""


def test_one_that_goes_on_with_a_body_that_was_refused_is_dropped(script, serve, monkeypatch):
    listener = serve(script("a", "b"))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999\r\n\r\n"
    with socket.create_connection(("127.0.0.1", listener.port), timeout=30) as opened:
        opened.sendall(head + b"{")
        assert answered(opened).startswith(b"HTTP/1.1 413 ")
        monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.05)
        opened.sendall(b" ")
        assert opened.recv(100) == b""


def test_what_stands_behind_a_body_in_chunks_has_a_limit(script, serve):
    listener = serve(script("a", "b"))
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
    refuses_endless(listener, head + b"1\r\n{\r\n0\r\nx-endless: ")


def test_a_compressed_body_is_refused_unread(script, serve):
    bomb = gzip.compress(bytes(16 << 20))
    for path in ("/v1/chat/completions", "/v1/messages"):
        status, _, text = send(serve(script("a", "b")), "POST", path, bomb, {"content-encoding": "gzip"})
        assert (status, "plain JSON" in json.loads(text)["error"]["message"]) == (415, True)


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/chat/completions"), ("PUT", "/v1/models"), ("POST", "/")])
def test_a_method_that_is_not_there(script, serve, method, path):
    status, headers, text = send(serve(script("a", "b")), method, path)
    assert status == 405
    assert method not in headers["allow"]
    assert method in json.loads(text)["error"]["message"] and headers["allow"].split(",")[0] in text.decode()


def test_head_has_no_body(script, serve):
    status, headers, text = send(serve(script("a", "b")), "HEAD", "/v1/models")
    assert (status, text) == (200, b"")
    assert int(headers["content-length"]) > 0


def test_options_that_make_no_sense():
    with pytest.raises(UsageError, match="max_requests = 0"):
        Listener(lambda report: None, Served("tiny"), port=0, most_requests=0)
    for queue_s in (0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="queue_s"):
            Listener(lambda report: None, Served("tiny"), port=0, queue_s=queue_s)
    listener = Listener(lambda report: None, Served("tiny"), host="0.0.0.0", port=0, insecure=True)
    listener._socket.close()
