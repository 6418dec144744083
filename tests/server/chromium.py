"""A real browser for the chat page's tests, driven by the WebDriver protocol, and a scripted server to talk to."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from leanseek.server.page import Page


class Site:
    """The page before a model that says what it is told: pieces of replies, refusals, and pauses."""

    def __init__(self) -> None:
        self.page = Page()
        self.pieces: list[dict] = []
        self.usage: dict = {}
        self.refusals: list[tuple[int, str]] = []
        self.key = ""
        self.live = False
        self.asked: list[dict] = []
        self.closed = 0
        self.gate = threading.Event()
        self.gate.set()
        routes = [Route(path, self._file) for path in self.page.paths]
        routes += [Route("/ready", self._ready), Route("/v1/models", self._models)]
        routes += [Route("/v1/chat/completions", self._chat, methods=["POST"])]
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/"
        config = uvicorn.Config(Starlette(routes=routes), log_level="error", lifespan="off", ws="none")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()

    def say(self, content: str = "", thinking: str = "", *, size: int = 7, calls: list | None = None, **usage) -> None:
        """Set the next replies: texts cut into pieces of a few characters."""
        self.pieces = [{"reasoning_content": part} for part in re.findall(rf"(?s).{{1,{size}}}", thinking)]
        self.pieces += [{"content": part} for part in re.findall(rf"(?s).{{1,{size}}}", content)]
        self.pieces += [{"tool_calls": [call]} for call in calls or []]
        self.usage = {"prompt_tokens": 58, "prompt_cache_hit_tokens": 32, "prompt_cache_miss_tokens": 26}
        self.usage |= {"completion_tokens": len(self.pieces), **usage}
        self.usage["completion_tokens_details"] = {
            "reasoning_tokens": sum("reasoning_content" in p for p in self.pieces)
        }

    def stop(self) -> None:
        self.gate.set()
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(5)

    async def _file(self, request: Request) -> Response:
        answer = self.page.respond(request)
        assert answer is not None
        return answer

    async def _ready(self, request: Request) -> Response:
        return JSONResponse({"status": "ready", "model": "scripted"})

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "scripted", "context_length": 4096}]})

    async def _chat(self, request: Request) -> Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "the API key is wrong"}}, 401)
        if self.refusals:
            status, message = self.refusals.pop(0)
            return JSONResponse({"error": {"message": message}}, status)
        self.asked.append(await request.json())
        return StreamingResponse(self._events(list(self.pieces)), media_type="text/event-stream")

    async def _events(self, pieces: list[dict]):
        try:
            yield ": keep-alive\n\n"
            yield event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
            for at, piece in enumerate(pieces):
                while at >= len(pieces) // 2 and not self.gate.is_set():
                    await asyncio.sleep(0.01)
                # A server that tells what was taken so far: a token and a joule for each piece.
                live = {**self.usage, "completion_tokens": at + 1, "joules": at + 1.0, "usd": 0.01 * (at + 1)}
                more = {"usage": live} if self.live else {}
                yield event([{"index": 0, "delta": piece, "finish_reason": None}], **more)
                await asyncio.sleep(0.002)
            reason = "tool_calls" if "tool_calls" in pieces[-1] else "stop"
            yield event([{"index": 0, "delta": {}, "finish_reason": reason}])
            yield event([], usage=self.usage)
            yield "data: [DONE]\n\n"
        finally:
            self.closed += 1


def event(choices, **more):
    return f"data: {json.dumps({'choices': choices, **more})}\n\n"


class Browser:
    """Chromium by the WebDriver protocol: JSON over HTTP."""

    ENTER, ESCAPE, CONTROL, SHIFT = "\ue007", "\ue00c", "\ue009", "\ue008"
    LEFT, UP, RIGHT = "\ue012", "\ue013", "\ue014"

    def __init__(self, folder: Path) -> None:
        self._driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
        port = None
        while port is None:
            line = self._driver.stdout.readline()
            assert line, "chromedriver ended"
            port = re.search(r"started successfully on port (\d+)", line)
        self._base = f"http://127.0.0.1:{port[1]}/session"
        arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-sync",
        ]
        arguments += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={folder}"]
        arguments += ["--window-size=1200,860", "--no-proxy-server", "--disable-dev-shm-usage"]
        options = {"binary": shutil.which("chromium"), "args": arguments}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._call("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self._base += f"/{session['sessionId']}"

    def _call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(self._base + path, data, {"content-type": "application/json"}, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(asked, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def close(self) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._driver.terminate()
            self._driver.wait(10)

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})
        self.until("document.getElementById('status')?.dataset.state === 'ready'")

    def reload(self) -> None:
        self._call("POST", "/refresh", {})
        self.until("document.getElementById('status')?.dataset.state === 'ready'")

    def run(self, script, *arguments):
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def value(self, expression):
        return self.run(f"return ({expression})")

    def until(self, expression, patience_s=10.0):
        """Wait until an expression is true, and return it."""
        end = time.monotonic() + patience_s
        while not (value := self.value(expression)):
            assert time.monotonic() < end, f"never true: {expression}; the page says: {self.text('body')}"
            time.sleep(0.03)
        return value

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0])?.innerText ?? null", selector)

    def texts(self, selector):
        return self.run("return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText)", selector)

    def click(self, selector):
        self.run("document.querySelector(arguments[0]).click()", selector)

    def keys(self, *keys):
        """Press keys at what has the focus; one of several characters that begins with a modifier is a chord."""
        actions = []
        for key in keys:
            held = key[0] if len(key) > 1 and key[0] in (self.CONTROL, self.SHIFT) else ""
            downs = [{"type": "keyDown", "value": held}] if held else []
            ups = [{"type": "keyUp", "value": held}] if held else []
            for one in key.removeprefix(held) if held else key:
                downs += [{"type": "keyDown", "value": one}, {"type": "keyUp", "value": one}]
            actions += downs + ups
        self._call("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def send(self, text: str) -> None:
        """Write a message and wait for the whole reply."""
        self.run("document.getElementById('question').focus()")
        self.keys(text, self.ENTER)
        self.until("document.querySelector('.turn.assistant') && document.getElementById('stop').hidden")

    def devtools(self, command, **parameters):
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def resize(self, width, height, *, phone=False):
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone
        )

    def screenshot(self, path):
        Path(path).write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def complaints(self):
        """What the console was told since the last call: errors, warnings, violations of the policy."""
        entries = self._call("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]
