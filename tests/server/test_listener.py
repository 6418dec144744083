from __future__ import annotations

import gc
import http.client
import json
import os
import signal
import socket
import threading
import time

import pytest

from leanseek.checkpoint.directory import save_model
from leanseek.engine.request import SamplingParams
from leanseek.errors import CheckpointError, ServerError, UsageError
from leanseek.server.app import Served
from leanseek.server.listener import Listener
from leanseek.server.loading import Loading
from leanseek.server.store import Store


def get(listener, path):
    connection = http.client.HTTPConnection("127.0.0.1", listener.port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_a_busy_port_is_told_before_anything_is_loaded():
    loaded = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port} of 127.0.0.1 is taken"):
            Listener(lambda report: loaded.append(1), Served("tiny"), port=port)
    assert not loaded


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none(port):
    with pytest.raises(UsageError, match=f"port = {port}"):
        Listener(lambda report: None, Served("tiny"), port=port)


def test_an_address_of_another_machine():
    with pytest.raises(ServerError, match=r"cannot listen on 192\.0\.2\.1"):
        Listener(lambda report: None, Served("tiny"), host="192.0.2.1", port=0, api_keys=("key",))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.com"])
def test_other_machines_need_a_key(host):
    with pytest.raises(UsageError, match="api-key-file"):
        Listener(lambda report: None, Served("tiny"), host=host, port=0)


def test_with_a_key_other_machines_may(script, serve):
    listener = serve(script("a", "b"), host="0.0.0.0", api_keys=("alpha",))
    assert get(listener, "/health")[0] == 200
    assert get(listener, "/v1/models")[0] == 401


def test_ready_tells_how_far_the_loading_is(script):
    go_on, told = threading.Event(), threading.Event()

    def load(report):
        report("reading 5 MB of weights", 0.5)
        told.set()
        go_on.wait(5)
        return script("a", "b")

    listener = Listener(load, Served("tiny"), port=0)
    thread = threading.Thread(target=listener.run)
    thread.start()
    assert told.wait(5)
    status, state = get(listener, "/ready")
    assert (status, state["status"], state["phase"], state["progress"]) == (
        503,
        "loading",
        "reading 5 MB of weights",
        0.5,
    )
    assert get(listener, "/health")[0] == 200
    assert get(listener, "/v1/models")[1]["data"][0]["context_length"] is None
    connection = http.client.HTTPConnection("127.0.0.1", listener.port, timeout=5)
    connection.request("POST", "/v1/chat/completions", '{"messages": [{"role": "user", "content": "a"}]}')
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]["code"]) == (503, "not_ready")
    connection.close()
    go_on.set()
    listener.bridge.wait(5)
    assert get(listener, "/ready")[0] == 200
    listener.stop()
    thread.join(5)
    assert not thread.is_alive()


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path, make_config):
    listener = Listener.of_folder(tmp_path, port=0)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        listener.run()
    listener = Listener.of_folder(tmp_path, port=0)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"), listener.background():
        pytest.fail("there is nothing to serve")


def test_of_folder(tmp_path, tiny_model, tiny_tokenizer):
    folder = tmp_path / "grpo-40"
    save_model(tiny_model, folder, tiny_tokenizer)
    with Listener.of_folder(folder, port=0).background() as listener:
        assert get(listener, "/ready") == (200, {"status": "ready", "model": "grpo-40", "requests": 0})
        first = listener.served.fingerprint
    os.utime(folder / "model.safetensors", (1, 1))
    changed = Listener.of_folder(folder, port=0, name="other", weights="bf16")
    changed._socket.close()
    assert changed.served.fingerprint != first
    assert changed.served.name == "other"


def test_the_progress_of_loading_is_that_of_the_weights(tmp_path, tiny_model, tiny_tokenizer):
    save_model(tiny_model, tmp_path / "model", tiny_tokenizer)
    loading, told = Loading(tmp_path / "model", "fp32", "cpu", 4, Store(gib=0.01)), []
    loading.engine(lambda phase, progress: told.append((phase, progress)))
    shares = [progress for _, progress in told]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] < 1
    reading = [progress for phase, progress in told if phase.startswith("reading")]
    assert len(reading) > 10 and reading[-1] == pytest.approx(0.9)


def test_replies_have_the_same_bits_unless_speed_is_asked_for(tmp_path, tiny_model, tiny_tokenizer):
    """And neither kind takes what the other one left on disk."""
    save_model(tiny_model, tmp_path / "model", tiny_tokenizer)
    store = Store(gib=0.01, folder=tmp_path / "cache")
    params, found = SamplingParams(max_tokens=4, temperature=0.0), []
    for invariant in (True, False, True):
        options = {} if invariant else {"invariant": False}
        engine = Loading(tmp_path / "model", "fp32", "cpu", 4, store, **options).engine(lambda *_: None)
        assert engine.invariant == invariant
        found.append(engine.generate([list(range(20, 60))], params)[0].cached_tokens)
        engine.prefixes.disk.close()
    assert found == [0, 0, 39]


def test_of_folder_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(UsageError, match="fp32, bf16"):
        Listener.of_folder(tmp_path, port=0, weights="int3")
    with pytest.raises(UsageError, match="max_batch = 0"):
        Listener.of_folder(tmp_path, port=0, max_batch=0)
    with pytest.raises(UsageError, match="drafts = 9"):
        Listener.of_folder(tmp_path, port=0, drafts=9)
    with pytest.raises(UsageError, match="usd_per_hour = -1"):
        Listener.of_folder(tmp_path, port=0, usd_per_hour=-1)
    with pytest.raises(UsageError, match="drain_s = -1"):
        Listener.of_folder(tmp_path, port=0, drain_s=-1)


def test_broken_weights_are_never_served(tmp_path, make_model, tiny_tokenizer):
    model = make_model()
    model.lm_head.weight.data[:] = float("nan")
    save_model(model, tmp_path / "broken", tiny_tokenizer)
    with pytest.raises(CheckpointError, match="not a finite number"):
        Listener.of_folder(tmp_path / "broken", port=0).run()


def test_ctrl_c_finishes_what_is_under_way(script, capfd):
    engine = script("think", "answer")
    listener = Listener(lambda report: engine, Served("tiny"), port=0)
    engine.hold()
    got = []

    def client():
        listener.bridge.wait(5)
        connection = http.client.HTTPConnection("127.0.0.1", listener.port, timeout=10)
        connection.request("POST", "/v1/chat/completions", '{"messages": [{"role": "user", "content": "a"}]}')
        while listener.bridge.active == 0:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.15)  # the server has stopped listening by now
        try:
            socket.create_connection(("127.0.0.1", listener.port), timeout=1).close()
        except ConnectionRefusedError:
            got.append("refused")
        engine.free()
        answer = connection.getresponse()
        got.append(json.loads(answer.read())["choices"][0]["message"]["content"])
        connection.close()

    thread = threading.Thread(target=client)
    thread.start()
    frozen = gc.get_freeze_count()
    listener.run()  # in the main thread, which gets the signal
    thread.join(5)
    assert gc.get_freeze_count() == 0 == frozen
    assert got == ["refused", "answer"]
    assert listener.bridge.state == "closed"
    assert "stopping when 1 requests are answered, within 120 s" in capfd.readouterr().err


def test_the_garbage_collector_is_the_processs_where_a_server_is_but_a_part_of_it(script):
    listener = Listener(lambda report: script("a", "b"), Served("tiny"), port=0)
    with listener.background():
        assert gc.get_freeze_count() == 0
    alone, seen = Listener(lambda report: script("a", "b"), Served("tiny"), port=0), []

    def look():
        alone.bridge.wait(5)
        seen.append(gc.get_freeze_count())
        alone.stop()

    thread = threading.Thread(target=look)
    thread.start()
    alone.run()
    thread.join(5)
    assert seen[0] > 1000 and gc.get_freeze_count() == 0


def test_url():
    listener = Listener(lambda report: None, Served("tiny"), port=0)
    assert listener.url == f"http://127.0.0.1:{listener.port}"
    listener._socket.close()


def text_of(listener, path):
    connection = http.client.HTTPConnection("127.0.0.1", listener.port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def ask(listener, text="start 5 +3 " * 6):
    connection = http.client.HTTPConnection("127.0.0.1", listener.port, timeout=10)
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 4, "seed": 1}
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body))
        return json.loads(connection.getresponse().read())["usage"]
    finally:
        connection.close()


def test_what_was_read_is_known_after_a_restart(tmp_path, tiny_model, tiny_tokenizer):
    save_model(tiny_model, tmp_path / "model", tiny_tokenizer)
    hits = []
    for _ in range(2):
        store = Store(gib=0.01, folder=tmp_path / "cache")
        with Listener.of_folder(tmp_path / "model", port=0, store=store).background() as listener:
            hits += [ask(listener)["prompt_cache_hit_tokens"] for _ in range(2)]
            assert listener.bridge.engine.speculation.drafts == 1
            usage = ask(listener)
    assert hits[0] == 0
    assert 0 < hits[1] <= hits[2] == hits[3] < usage["prompt_tokens"]


def test_answers_tell_what_they_cost(tmp_path, tiny_model, tiny_tokenizer):
    save_model(tiny_model, tmp_path / "model", tiny_tokenizer)
    listener = Listener.of_folder(tmp_path / "model", port=0, usd_per_hour=0.05, drafts=0, aliases=("mine",))
    with listener.background():
        usage = ask(listener)
        assert listener.bridge.engine.speculation is None
        assert [one["id"] for one in get(listener, "/v1/models")[1]["data"]][:2] == ["model", "mine"]
        assert b"\nleanseek_joules_per_token " in text_of(listener, "/metrics")
    assert usage["joules"] > 0
    assert 0 < usage["usd"] < 0.05
    assert ":" in usage["joules_meter"]
