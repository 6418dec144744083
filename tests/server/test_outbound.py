"""The server asks nobody else for anything: no module of it can, and answering connects to nowhere."""

from __future__ import annotations

import ast
import json
import socket
from importlib import resources
from pathlib import Path

import pytest

from leanseek.checkpoint.directory import save_model
from leanseek.server.listener import Listener
from tests.server.test_app import ASK, send

ROOT = Path(str(resources.files("leanseek")))
# The cluster's replicas talk through Ray, which is what it is for.
FILES = [path for part in ("server", "engine") for path in sorted((ROOT / part).glob("*.py")) if path.stem != "cluster"]
CLIENTS = {
    "httpx",
    "httpx2",
    "requests",
    "aiohttp",
    "urllib3",
    "urllib",
    "http",
    "ftplib",
    "smtplib",
    "xmlrpc",
    "openai",
}


def roots(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_client_is_imported(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not set(roots(tree)) & CLIENTS
    calls = {node.func.attr for node in ast.walk(tree) if isinstance(node, ast.Call) and hasattr(node.func, "attr")}
    assert not calls & {"create_connection", "open_connection", "getaddrinfo", "sock_connect", "connect"}


def test_loading_and_answering_connect_to_nowhere(tmp_path, tiny_model, tiny_tokenizer, monkeypatch):
    save_model(tiny_model, tmp_path / "model", tiny_tokenizer)
    reached, connect, look_up = [], socket.socket.connect, socket.getaddrinfo

    def connecting(self, address):
        reached.append(address)
        return connect(self, address)

    def looking_up(host, *arguments, **options):
        reached.append((host,))
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", connecting)
    monkeypatch.setattr(socket, "getaddrinfo", looking_up)
    with Listener.of_folder(tmp_path / "model", port=0).background() as listener:
        assert reached == []
        link = [{"role": "user", "content": "see https://example.org/a.png"}]
        for path, fields in (
            ("/v1/chat/completions", {"messages": link, "max_tokens": 2}),
            ("/v1/completions", {"prompt": "https://example.org", "max_tokens": 2}),
            ("/v1/responses", {"input": "a", "max_output_tokens": 2}),
            ("/v1/messages", {"messages": ASK, "max_tokens": 2}),
            ("/tokenize", {"prompt": "a"}),
        ):
            assert send(listener, "POST", path, json.dumps(fields))[0] == 200
        picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://example.org"}}]}]
        assert send(listener, "POST", "/v1/chat/completions", json.dumps({"messages": picture}))[0] == 422
        assert send(listener, "GET", "/")[0] == send(listener, "GET", "/metrics")[0] == 200
    assert reached and {address[0] for address in reached} == {"127.0.0.1"}  # the test's own client
    assert {address[1] for address in reached if len(address) > 1} == {listener.port}
