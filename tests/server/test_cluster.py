"""Two replicas on this machine behind a router, as a Ray Serve application."""

from __future__ import annotations

import http.client
import importlib.util
import json
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from leanseek.checkpoint.directory import save_model
from tests.server.invariants import check_chat_stream

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "serving-at-scale.yaml"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore"),  # Ray's own
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray, of the extra cluster"),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, make_model, tiny_tokenizer):
    import ray
    import yaml
    from ray import serve
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build
    from ray.serve.schema import ServeDeploySchema

    from leanseek.server.cluster import application

    (guide,) = ServeDeploySchema.model_validate(yaml.safe_load(GUIDE.read_text())).applications
    assert guide.import_path == "leanseek.server.cluster:application"
    folder = tmp_path_factory.mktemp("cluster")
    save_model(make_model(max_position_embeddings=512), folder / "tiny", tiny_tokenizer)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 << 20,
        runtime_env={"env_vars": {"PYTHONPATH": ":".join(filter(None, sys.path))}},
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build(application, {**guide.args, "model": str(folder / "tiny")}), name=guide.name)
        yield SimpleNamespace(port=port)
    finally:
        serve.shutdown()
        ray.shutdown()


def ask(cluster, path, method="POST", **fields):
    connection = http.client.HTTPConnection("127.0.0.1", cluster.port, timeout=60)
    try:
        connection.request(method, path, json.dumps(fields) if fields else None)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def said(text, **fields):
    return {"max_tokens": 8, "seed": 1, "messages": [{"role": "user", "content": text}], **fields}


def test_conversations_stay_where_they_are_known_and_spread_over_the_replicas(cluster):
    homes = set()
    for number in range(12):
        asked = said(f"start {number} and " + "think step right left " * 6)
        _, headers, body = ask(cluster, "/v1/chat/completions", **asked)
        first = json.loads(body)
        homes.add(headers["x-replica"])
        asked["messages"] += [first["choices"][0]["message"], {"role": "user", "content": "and now"}]
        _, again, body = ask(cluster, "/v1/chat/completions", **asked)
        assert again["x-replica"] == headers["x-replica"]
        assert json.loads(body)["usage"]["prompt_cache_hit_tokens"] > 0
    assert len(homes) == 2


def test_streams_errors_and_the_page_pass_through(cluster):
    status, headers, body = ask(cluster, "/v1/chat/completions", **said("start 5", stream=True))
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    check_chat_stream(body)
    status, _, body = ask(cluster, "/v1/chat/completions", **said("start 5", n=10**9))
    assert status == 422 and json.loads(body)["error"]["param"] == "n"
    assert ask(cluster, "/v1/messages", **said("start 5"))[0] == 200
    assert ask(cluster, "/nothing", "GET")[0] == 404
    assert ask(cluster, "/ready", "GET")[0] == 200
    status, headers, body = ask(cluster, "/", "GET")
    assert status == 200 and b"<html" in body and "content-security-policy" in headers


def test_a_client_that_leaves_is_gone_for_its_replica(cluster):
    body = json.dumps(said("start 5", stream=True, max_tokens=400, n=4)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", cluster.port), timeout=30) as opened:
        opened.sendall(head.encode() + body)
        assert opened.recv(200)
    deadline = time.monotonic() + 30
    while True:  # both replicas are asked in turn, as it happens
        active = [json.loads(ask(cluster, "/ready", "GET")[2])["requests"] for _ in range(6)]
        if not any(active):
            break
        assert time.monotonic() < deadline, active
        time.sleep(0.2)
