"""What the server's tests share: an engine that says what it is told, and servers on real sockets."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import openai
import pytest

from leanseek.engine.engine import Engine
from leanseek.engine.grammar import GrammarCompiler
from leanseek.engine.request import Event, SamplingParams
from leanseek.messages import Message, ToolCall
from leanseek.model.transformer import Transformer
from leanseek.server.app import Served
from leanseek.server.listener import Listener
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.tokenizer import Tokenizer
from tests.server.chromium import Browser, Site


class ScriptedEngine:
    """Stands for an engine: every reply is the same given tokens; `hold()` makes steps wait for `allow()`.

    Its grammars are those that a real engine would be given; it follows none.
    """

    def __init__(self, tokenizer: Tokenizer, script: Sequence[int], context_tokens: int = 4096, rows: int = 4) -> None:
        self.tokenizer, self.chat = tokenizer, ChatFormat(tokenizer)
        self.max_context_tokens = context_tokens
        self.config = SimpleNamespace(bos_token_id=0, vocab_size=tokenizer.vocab_size)
        self.script, self.rows = list(script), rows
        self.waiting: list[tuple[str, int, SamplingParams]] = []
        self.running: dict[tuple[str, int], tuple[SamplingParams, list[int]]] = {}
        self.seen: list[SamplingParams] = []
        self.prompts: list[list[int]] = []
        self.scopes: list[str] = []
        self.cached_tokens = 0
        self.fail_next: Exception | None = None
        self.fail_cancel: Exception | None = None
        self._allowed: threading.Semaphore | None = None

    def hold(self) -> None:
        self._allowed = threading.Semaphore(0)

    def allow(self, steps: int = 1) -> None:
        assert self._allowed is not None
        self._allowed.release(steps)

    def free(self) -> None:
        held, self._allowed = self._allowed, None
        if held is not None:
            held.release(1000)

    def compile(self, grammar) -> None:
        GrammarCompiler(self.tokenizer, self.config.vocab_size, [self.tokenizer.eos_id]).compile(grammar)

    @property
    def queued(self) -> set[str]:
        return {one[0] for one in self.waiting} - {request_id for request_id, _ in self.running}

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, prompt_ids: Sequence[int], params: SamplingParams, request_id: str, scope: str = "") -> str:
        self.prompts.append(list(prompt_ids))
        self.seen.append(params)
        self.scopes.append(scope)
        self.waiting += [(request_id, index, params) for index in range(params.n)]
        return request_id

    def cancel(self, request_id: str) -> None:
        if self.fail_cancel is not None:
            raise self.fail_cancel
        self.waiting = [one for one in self.waiting if one[0] != request_id]
        self.running = {key: one for key, one in self.running.items() if key[0] != request_id}

    def step(self) -> list[Event]:
        if self._allowed is not None:
            self._allowed.acquire()
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise error
        while self.waiting and len(self.running) < self.rows:
            request_id, index, params = self.waiting.pop(0)
            self.running[request_id, index] = (params, [])
        events = []
        for (request_id, index), (params, tokens) in list(self.running.items()):
            tokens.append(self.script[len(tokens) % len(self.script)])
            reason = "length" if len(tokens) >= params.max_tokens else None
            reason = "stop" if tokens[-1] == self.tokenizer.eos_id else reason
            if any(stop in self.tokenizer.decode(tokens) for stop in params.stop):
                reason = reason or "stop"
            if reason is not None:
                del self.running[request_id, index]
            events.append(self._event(request_id, index, params, tokens, reason))
        return events

    def _event(self, request_id, index, params, tokens, reason) -> Event:
        token, first = tokens[-1], len(tokens) == 1
        prompt = self.prompts[-1] if first and params.prompt_logprobs is not None else None
        return Event(
            request_id,
            index,
            token,
            -0.5,
            reason,
            top_logprobs=_top(token)[: params.logprobs] if params.logprobs else None,
            cached_tokens=self.cached_tokens if first else 0,
            prompt_logprobs=None if prompt is None else [None, *[-0.25] * (len(prompt) - 1)],
            prompt_top_logprobs=None if prompt is None else [None, *(_top(one) for one in prompt[1:])],
        )


def _top(token: int) -> tuple[tuple[int, float], ...]:
    return ((token, -0.5), (token + 1, -1.5), (token + 2, -2.5))


@pytest.fixture
def speak(tiny_tokenizer: Tokenizer) -> Callable[..., ScriptedEngine]:
    """Return a function that makes an engine that says a message, tool calls included."""

    def make(content: str = "", thinking: str | None = "hm", calls: Sequence[ToolCall] = (), **options: int):
        message = Message("assistant", content, thinking, tuple(calls))
        return ScriptedEngine(tiny_tokenizer, ChatFormat(tiny_tokenizer).reply(message), **options)

    return make


@pytest.fixture
def script(tiny_tokenizer: Tokenizer) -> Callable[..., ScriptedEngine]:
    """Return a function that makes an engine that thinks and says the given texts."""

    def make(thinking: str, answer: str, **options: int) -> ScriptedEngine:
        chat = ChatFormat(tiny_tokenizer)
        ids = [*tiny_tokenizer.encode(thinking + "\n"), chat.end_think_id, *tiny_tokenizer.encode(answer)]
        return ScriptedEngine(tiny_tokenizer, [*ids, tiny_tokenizer.eos_id], **options)

    return make


@pytest.fixture
def serve() -> Iterator[Callable[..., Listener]]:
    """Return a function that serves an engine on a free port until the test ends."""
    opened = []

    def start(engine: Engine | ScriptedEngine, served: Served | None = None, **options: object) -> Listener:
        listener = Listener(lambda report: engine, served or Served("tiny"), port=0, **options)
        context = listener.background()
        opened.append(context)
        return context.__enter__()

    yield start
    for context in reversed(opened):
        context.__exit__(None, None, None)


@pytest.fixture(scope="package")
def tiny_server(tiny_model: Transformer, tiny_tokenizer: Tokenizer) -> Iterator[Listener]:
    """A server with a real engine, shared by the tests that leave it as it is."""
    listener = Listener(lambda report: Engine(tiny_model, tiny_tokenizer, max_batch=8), Served("tiny"), port=0)
    with listener.background():
        yield listener


@pytest.fixture
def connect() -> Iterator[Callable[..., openai.OpenAI]]:
    """Return a function that gives OpenAI's own client for a server."""
    opened = []

    def make(listener: Listener, key: str = "none", **options: object) -> openai.OpenAI:
        options = {"base_url": f"{listener.url}/v1", "max_retries": 0, "timeout": 20, **options}
        opened.append(openai.OpenAI(api_key=key, **options))
        return opened[-1]

    yield make
    for client in opened:
        client.close()


@pytest.fixture
def client(tiny_server: Listener, connect: Callable[..., openai.OpenAI]) -> openai.OpenAI:
    """OpenAI's own client for the shared server."""
    return connect(tiny_server)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A real browser, or the name of what is missing for one."""
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def site():
    """The chat page before a model that says what it is told."""
    # A new port is a new origin, and a new origin has kept nothing.
    site = Site()
    yield site
    site.stop()


@pytest.fixture
def browser(chromium, site):
    """The page, open; afterwards the console must be clean."""
    chromium.complaints()
    chromium.resize(1200, 860)
    site.say("42")
    chromium.open(site.url)
    yield chromium
    assert chromium.complaints() == []
