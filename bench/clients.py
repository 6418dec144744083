"""Clients: ask a server by HTTP as cheaply as can be, since they share the processor with what they measure."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import httptools

WORDS = "start total largest number where right left line step think answer the a of and".split()
PATIENCE_S = 300.0


@dataclass
class Seen:
    """What the clients saw.

    Args:
        tokens: of answers that came to their full length in time.
        answers, refused, wrong: requests that were answered, told to come later (429), and all others.
        seconds: that were measured.
        first_ms, between_ms: until the first piece of text, and between pieces.
    """

    tokens: int = 0
    answers: int = 0
    refused: int = 0
    wrong: int = 0
    seconds: float = 0.0
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
        self._answer: asyncio.Future[int] | None = None

    def ask(self, request: bytes) -> asyncio.Future[int]:
        """Send a request; gives its status once it is answered."""
        self.pieces: list[tuple[float, bytes]] = []
        self._parser = httptools.HttpResponseParser(self)
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.pieces.append((time.perf_counter(), body))

    def on_message_complete(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(self._parser.get_status_code())

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():  # a stream that breaks off
            self._answer.set_result(0)


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

    def closed(self, clients: int, seconds: float, pause_s: float) -> Seen:
        """Let so many clients ask, read the answer, wait for a while (exponentially distributed) and ask again."""
        return asyncio.run(self._run([self._client(seconds, pause_s) for _ in range(clients)], seconds))

    def opened(self, per_second: float, seconds: float) -> Seen:
        """Send so many requests a second, whatever becomes of them."""
        return asyncio.run(self._run([self._arrivals(seconds, per_second)], seconds))

    async def _run(self, each: list[Coroutine[Any, Any, None]], seconds: float) -> Seen:
        self._end_s = time.perf_counter() + seconds
        self._idle: list[Connection] = []
        self._answered: list[tuple[float, int, list[tuple[float, bytes]]]] = []
        await asyncio.gather(*each)
        seen = Seen(seconds=seconds)
        for asked_s, status, pieces in self._answered:
            self._note(seen, asked_s, status, pieces)
        return seen

    async def _client(self, seconds: float, pause_s: float) -> None:
        await asyncio.sleep(self._rng.random() * pause_s)
        while time.perf_counter() < self._end_s:
            await self._ask()
            if pause_s:
                await asyncio.sleep(self._rng.expovariate(1 / pause_s))

    async def _arrivals(self, seconds: float, per_second: float) -> None:
        asked, next_s = [], time.perf_counter()
        while next_s < self._end_s:
            if (ahead_s := next_s - time.perf_counter()) > 0:
                await asyncio.sleep(ahead_s)
            asked.append(asyncio.create_task(self._ask()))
            next_s += self._rng.expovariate(per_second)
        await asyncio.gather(*asked)

    async def _ask(self) -> None:
        asked_s = time.perf_counter()
        try:
            connection = self._idle.pop() if self._idle else await self._connect()
            async with asyncio.timeout(PATIENCE_S):
                status = await connection.ask(self._request())
        except (OSError, TimeoutError):
            self._answered.append((asked_s, 0, []))
            return
        self._answered.append((asked_s, status, connection.pieces))
        if status and not connection.transport.is_closing():
            self._idle.append(connection)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(Connection, self._host, int(self._port)))[1]

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

    def _note(self, seen: Seen, asked_s: float, status: int, pieces: list[tuple[float, bytes]]) -> None:
        """Count an answer. Pieces are no measure of tokens: a server may send several at once, or hold text back."""
        if status != 200:
            seen.refused += status == 429
            seen.wrong += status != 429
            return
        whole, last_s, times, rest = False, asked_s, list[float](), b""
        for at_s, piece in pieces:
            *events, rest = (rest + piece).split(b"\n\n")
            chunks = [json.loads(one.removeprefix(b"data: ")) for one in events if one.startswith(b"data: {")]
            choices = [one for chunk in chunks for one in chunk.get("choices") or ()]
            whole |= any(one.get("finish_reason") == "length" for one in choices)
            if any(one["delta"].get("content") or one["delta"].get("reasoning_content") for one in choices):
                times.append(at_s - last_s)
                last_s = at_s
        # What comes after the end belongs to no second that is counted.
        if whole and pieces[-1][0] < self._end_s:
            seen.tokens += self._tokens
        if times:
            seen.answers += 1
            seen.first_ms.append(1000 * times[0])
            seen.between_ms += [1000 * one for one in times[1:]]
