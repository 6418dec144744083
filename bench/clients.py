"""Clients: ask a server by HTTP as cheaply as can be, since they share the processor with what they measure."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import httptools
import uvloop

WORDS = "start total largest number where right left line step think answer the a of and".split()
PATIENCE_S = 300.0
REQUESTS = 4096  # that are made beforehand
TICK_S = 0.001  # what is due within it is sent together
LAST_CHUNK = b"\r\n0\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass
class Seen:
    """What the clients saw.

    Args:
        tokens: of answers that came to their full length, as great a share as of their pieces came in time.
        answers, refused, wrong: requests that were answered, told to come later (429), and all others.
        seconds: that were measured.
        own_s: processor time that the clients took for it.
        first_ms, between_ms: until the first piece of text, and between pieces.
    """

    tokens: float = 0.0
    answers: int = 0
    refused: int = 0
    wrong: int = 0
    seconds: float = 0.0
    own_s: float = 0.0
    first_ms: list[float] = field(default_factory=list)
    between_ms: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    def figures(self) -> dict[str, float]:
        """Return the percentiles."""
        return {
            f"{name}_p{share}_ms": round(_percentile(values, share / 100), 2)
            for name, values in (("first", self.first_ms), ("between", self.between_ms))
            for share in (50, 99)
        }


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else float("nan")


class Connection(asyncio.Protocol):
    """One connection, one request at a time; what comes is kept with its time and read when all is over."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self._answered: Callable[[Connection], None] | None = None

    def ask(self, request: bytes, answered: Callable[[Connection], None]) -> None:
        """Send a request; `answered` is called once its answer is there, or the connection is lost."""
        self.asked_s = time.perf_counter()
        self.pieces: list[tuple[float, bytes]] = []
        self._answered, self._left, self._tail = answered, -1, b""
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.pieces.append((time.perf_counter(), data))
        if len(self.pieces) == 1:
            head, _, body = data.partition(b"\r\n\r\n")  # servers send a head whole
            length = _LENGTH.search(head)
            self._left = int(length[1]) - len(body) if length else -1
        elif self._left >= 0:
            self._left -= len(data)
        self._tail = (self._tail + data)[-len(LAST_CHUNK) :] if len(data) < len(LAST_CHUNK) else data
        if self._left == 0 or (self._left < 0 and self._tail.endswith(LAST_CHUNK)):
            self._over()

    def connection_lost(self, error: Exception | None) -> None:
        self._over()

    def _over(self) -> None:
        answered, self._answered = self._answered, None
        if answered is not None:
            answered(self)


class Answer:
    """Reads what a connection kept; a stream that broke off has no status.

    Args:
        asked_s: when it was asked for.
        pieces: when what came.
    """

    def __init__(self, asked_s: float, pieces: list[tuple[float, bytes]]) -> None:
        self.asked_s, self.status = asked_s, 0
        self.pieces: list[tuple[float, bytes]] = []
        self._parser = httptools.HttpResponseParser(self)
        for self._at_s, data in pieces:
            self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.pieces.append((self._at_s, body))

    def on_message_complete(self) -> None:
        self.status = self._parser.get_status_code()


class Clients:
    """Asks a server.

    Args:
        url: of the server.
        model: what it calls the model.
        seed: of prompts and pauses.
        tokens: of every answer.
    """

    def __init__(self, url: str, model: str, seed: int, tokens: int) -> None:
        self._host, _, self._port = url.removeprefix("http://").partition(":")
        self._model, self._rng, self._tokens = model, random.Random(seed), tokens
        self._requests = [self._request() for _ in range(REQUESTS)]
        self._next = 0

    def closed(self, clients: int, seconds: float, pause_s: float) -> Seen:
        """Let so many clients ask, read the answer, wait for a while (exponentially distributed) and ask again."""
        return uvloop.run(self._run([self._client(seconds, pause_s) for _ in range(clients)], seconds))

    def opened(self, per_second: float, seconds: float) -> Seen:
        """Send so many requests a second, whatever becomes of them."""
        return uvloop.run(self._run([self._arrivals(seconds, per_second)], seconds))

    async def _run(self, each: list[Coroutine[Any, Any, None]], seconds: float) -> Seen:
        began_cpu_s = time.process_time()
        self._end_s = time.perf_counter() + seconds
        self._idle: list[Connection] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self._answered: list[tuple[float, list[tuple[float, bytes]]]] = []
        async with asyncio.timeout(seconds + PATIENCE_S):
            await asyncio.gather(*each)
        seen = Seen(seconds=seconds, own_s=time.process_time() - began_cpu_s)
        for answer in itertools.starmap(Answer, self._answered):
            self._note(seen, answer)
        return seen

    async def _client(self, seconds: float, pause_s: float) -> None:
        await asyncio.sleep(self._rng.random() * pause_s)
        while time.perf_counter() < self._end_s:
            over = asyncio.Event()
            self._ask(over.set)
            await over.wait()
            if pause_s:
                await asyncio.sleep(self._rng.expovariate(1 / pause_s))

    async def _arrivals(self, seconds: float, per_second: float) -> None:
        next_s, sent, over = time.perf_counter(), 0, asyncio.Semaphore(0)
        while (now_s := time.perf_counter()) < self._end_s:
            while next_s <= now_s:
                self._ask(over.release)
                sent += 1
                next_s += self._rng.expovariate(per_second)
            await asyncio.sleep(TICK_S)
        for _ in range(sent):
            await over.acquire()

    def _ask(self, over: Callable[[], object]) -> None:
        """Send the next request; `over` is called when its answer is there."""
        self._next = (self._next + 1) % len(self._requests)
        request = self._requests[self._next]
        while self._idle and self._idle[-1].transport.is_closing():  # kept for longer than the server keeps them
            self._idle.pop()
        if self._idle:
            self._idle.pop().ask(request, lambda connection: self._note_answer(connection, over))
        else:
            task = asyncio.create_task(self._ask_anew(request, over))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _ask_anew(self, request: bytes, over: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(Connection, self._host, int(self._port))
        except OSError:
            self._answered.append((time.perf_counter(), []))
            over()
        else:
            connection.ask(request, lambda connection: self._note_answer(connection, over))

    def _note_answer(self, connection: Connection, over: Callable[[], object]) -> None:
        self._answered.append((connection.asked_s, connection.pieces))
        if not connection.transport.is_closing():
            self._idle.append(connection)
        over()

    def _request(self) -> bytes:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": " ".join(self._rng.choices(WORDS, k=24))}],
            "max_tokens": self._tokens,
            "temperature": 0,
            "stream": True,
        }
        sent = json.dumps(body).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
        return f"{head}content-length: {len(sent)}\r\n\r\n".encode() + sent

    def _note(self, seen: Seen, answer: Answer) -> None:
        """Count an answer.

        Pieces are no measure of tokens, as a server may hold text back; but what share of them came in time tells how
        far an answer was then.
        """
        if answer.status != 200:
            seen.refused += answer.status == 429
            seen.wrong += answer.status != 429
            return
        whole, last_s, times, rest, told, in_time = False, answer.asked_s, list[float](), b"", 0, 0
        for at_s, piece in answer.pieces:
            *events, rest = (rest + piece).split(b"\n\n")
            chunks = [json.loads(one.removeprefix(b"data: ")) for one in events if one.startswith(b"data: {")]
            choices = [one for chunk in chunks for one in chunk.get("choices") or ()]
            whole |= any(one.get("finish_reason") == "length" for one in choices)
            said = sum(bool(one["delta"].get("content") or one["delta"].get("reasoning_content")) for one in choices)
            told, in_time = told + said, in_time + said * (at_s < self._end_s)
            if said:
                times.append(at_s - last_s)
                last_s = at_s
        if whole and told:
            seen.tokens += self._tokens * in_time / told
        if times:
            seen.answers += 1
            seen.first_ms.append(1000 * times[0])
            seen.between_ms += [1000 * one for one in times[1:]]


class Sink(asyncio.Protocol):
    """Refuses every request by the same bytes: as little as a server in Python can do for one."""

    ANSWER = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 2\r\n\r\n{}"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._transport.write(self.ANSWER)


def sink(port: int) -> None:
    """Refuse requests on a port until the process is ended."""

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Sink, "127.0.0.1", port, backlog=512)
        await server.serve_forever()

    uvloop.run(serve())


def flood(port: int, per_second: float, seconds: float) -> None:
    """Send so many requests a second to a port."""
    Clients(f"http://127.0.0.1:{port}", "model", 0, 1).opened(per_second, seconds)
