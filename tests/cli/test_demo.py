from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from rich.console import Console

from leanseek.checkpoint.directory import save_model
from leanseek.cli.demo import _examine, ask, demo, program
from leanseek.envs.environment import load_environment
from leanseek.errors import CheckpointError, RunError, ServerError, UsageError
from leanseek.messages import Message, ToolCall
from leanseek.run import Run
from leanseek.settings import Recipe

COST = {"tokens": 5e6, "flops": 3.1e15, "joules": 7400.0, "meter": "estimated:psutil", "usd": 0.0091}


@pytest.fixture
def run(tmp_path, tiny_model, tiny_tokenizer):
    """A run that has just been made."""
    made = Run.create(tmp_path / "laptop", Recipe(environments=("running_total", "largest")))
    save_model(tiny_model, made.checkpoint("grpo", 40), tiny_tokenizer)
    made.finish("pretrain", {"seconds": 200.0, "peak_memory_bytes": 1.3e9, **COST})
    made.finish("grpo", {"seconds": 290.0, **COST})
    made.update("totals", {"seconds": 490.0, **COST})
    made.update("accuracy", {"largest": {"base": 0.01, "sft": 0.4, "grpo": 0.654, "n": 512}})
    made.report_path.write_text("<html></html>")
    return made


def test_demo(run, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [".venv/bin/leanseek"])
    demo(run.folder, questions=2)
    out = capsys.readouterr().out
    problems = load_environment("running_total").problems("test", 0)
    for problem in (next(problems), next(problems)):
        for line in problem.prompt.splitlines():
            assert line in out
    assert out.count(" of 2 right") == 2
    assert out.count("wrong") >= 3  # the weights are random
    for figure in ("3 min 20 s", "8 min 10 s", "3.1 PFLOP", "7.4 kJ", "$0.0091", "1.3 GB", "estimated:psutil", "65.4%"):
        assert figure in out
    assert str(run.report_path) in out
    assert f".venv/bin/leanseek chat {run.folder}" in out
    assert f".venv/bin/leanseek serve {run.folder}" in out


def test_levels_go_by_the_tasks_own_name(tmp_path, tiny_model, tiny_tokenizer, capsys):
    """Also where the recipe names the task by its module, as in training."""
    recipe = Recipe(environments=("leanseek.envs.largest",), levels={"largest": (5,)})
    made = Run.create(tmp_path / "dotted", recipe)
    save_model(tiny_model, made.checkpoint("sft", 1), tiny_tokenizer)
    demo(made.folder, questions=2)
    out = capsys.readouterr().out
    problems = load_environment("largest").problems("test", 0, (5,))
    assert all(next(problems).prompt in out for _ in range(2))


def test_demo_refuses(run, tmp_path):
    with pytest.raises(UsageError, match="questions = 0"):
        demo(run.folder, questions=0)
    with pytest.raises(RunError, match="not a run folder"):
        demo(tmp_path / "missing")
    empty = Run.create(tmp_path / "empty", Recipe())
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        demo(empty.folder)


class Answering(BaseHTTPRequestHandler):
    """Answers every question with its own text, in capitals."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = body["messages"][0]["content"]
        message = {"role": "assistant", "content": text.upper(), "reasoning_content": "hm"}
        self.send_response(500 if text == "fail" else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": message}], "error": {"message": "no"}}).encode())

    def log_message(self, *args):
        pass


def test_ask_speaks_openais_protocol(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # must not be used for the own server
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        reply = ask(url, "tiny", "grüße", 8)
        assert (reply.content, reply.reasoning_content) == ("GRÜSSE", "hm")
        with pytest.raises(ServerError, match="answered 500"):
            ask(url, "tiny", "fail", 8)
        server.shutdown()
    with pytest.raises(ServerError, match="does not answer"):
        ask(url, "tiny", "hello", 8)


def test_program(monkeypatch):
    for called, expected in (
        (".venv/bin/leanseek", ".venv/bin/leanseek"),
        ("leanseek", "leanseek"),
        ("leanseek/__main__.py", f"{sys.executable} -m leanseek"),
        ("pytest", "leanseek"),
    ):
        monkeypatch.setattr(sys, "argv", [called])
        assert program() == expected


def test_a_tool_loop_is_gone_through(tmp_path, capsys, monkeypatch):
    """The calls of a reply are done, and their results asked with, until there is an answer."""
    made = Run.create(tmp_path / "tools", Recipe(environments=("tool_use",), levels={"tool_use": (1,)}))
    heard = []

    def answer(url, model, said, max_tokens, tools):
        heard.append([message.role for message in said])
        assert {tool.name for tool in tools} == {"calculator", "python"}
        if said[-1].role == "tool":
            return Message("assistant", said[-1].content, "read it")
        expression = said[-1].content.removeprefix("What is ").removesuffix("?")
        call = ToolCall("call_0", "calculator", json.dumps({"expression": expression}))
        return Message("assistant", "", "work it out", (call,))

    monkeypatch.setattr("leanseek.cli.demo.ask", answer)
    _examine(Console(), "", "", made, "tool_use", 2)
    out = capsys.readouterr().out
    assert "2 of 2 right" in out and "calculator" in out and "read it" in out
    assert heard == [["user"], ["user", "assistant", "tool"]] * 2
