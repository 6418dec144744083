from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import urllib.request

import pytest

from leanseek.checkpoint.directory import save_model
from leanseek.cli.serve import serve
from leanseek.errors import CheckpointError, ServerError, UsageError


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_serve_until_ctrl_c(by, tmp_path, tiny_model, tiny_tokenizer, capfd):
    save_model(tiny_model, tmp_path / "laptop", tiny_tokenizer)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    answers = []

    def client():
        limit = time.monotonic() + 10
        while time.monotonic() < limit and not answers:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5) as answer:
                    answers.append(json.load(answer))
            except OSError:
                time.sleep(0.01)
        os.kill(os.getpid(), by)

    thread = threading.Thread(target=client)
    thread.start()
    # It returns: a signal is the way to end it.
    serve(
        tmp_path / "laptop", port=port, cache_dir=tmp_path / "cache", cache_gib=0.01, alias=("small",), access_log=True
    )
    thread.join(5)
    assert answers == [{"status": "ready", "model": "laptop", "requests": 0}]
    assert f"http://127.0.0.1:{port}/v1" in capfd.readouterr().err


def test_serve_refuses(tmp_path, tiny_model, tiny_tokenizer):
    with pytest.raises(CheckpointError, match="no such folder"):
        serve(tmp_path / "missing")
    save_model(tiny_model, tmp_path / "model", tiny_tokenizer)
    model = tmp_path / "model"
    with pytest.raises(UsageError, match="api-key-file"):
        serve(model, host="0.0.0.0", port=0)
    with pytest.raises(UsageError, match="go together"):
        serve(model, port=0, tls_cert=tmp_path / "cert")
    with pytest.raises(UsageError, match="cache_gib = 0"):
        serve(model, port=0, cache_gib=0)
    with pytest.raises(UsageError, match="max_requests = 0"):
        serve(model, port=0, max_requests=0)
    with pytest.raises(UsageError, match="cannot be read"):
        serve(model, host="0.0.0.0", port=0, api_key_file=tmp_path / "keys")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ServerError, match="is taken"):
        serve(model, port=taken.getsockname()[1])
