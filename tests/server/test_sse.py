from __future__ import annotations

import asyncio

import pytest

from leanseek.server import sse
from leanseek.server.jsontext import frame
from leanseek.server.sse import ClientGoneError, EventStream, unless_disconnected


def test_frame():
    assert frame({"a": "é\n"}) == 'data: {"a":"é\\n"}\n\n'.encode()


class Connection:
    """The server's side of a connection: `leave()` is the client closing it."""

    def __init__(self) -> None:
        self._gone = asyncio.Event()
        self.sent = []

    def leave(self) -> None:
        self._gone.set()

    async def receive(self):
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


def test_work_that_ends_gives_its_result():
    async def go():
        async def work():
            return 5

        return await unless_disconnected(Connection().receive, work())

    assert asyncio.run(go()) == 5


def test_work_that_fails_raises():
    async def go():
        async def work():
            raise ValueError("no")

        await unless_disconnected(Connection().receive, work())

    with pytest.raises(ValueError, match="no"):
        asyncio.run(go())


def test_work_is_cancelled_when_the_client_leaves():
    async def go():
        connection, cancelled = Connection(), asyncio.Event()

        async def work():
            connection.leave()
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()

        with pytest.raises(ClientGoneError):
            await unless_disconnected(connection.receive, work())
        assert cancelled.is_set()

    asyncio.run(go())


async def numbers(count, pause_s=0.0):
    for number in range(count):
        if pause_s:
            await asyncio.sleep(pause_s)
        yield frame(number)


def test_a_stream_is_sent_whole_and_closed_once():
    async def go():
        connection, closed = Connection(), []
        response = EventStream(numbers(3), lambda: closed.append(1))
        await response({"type": "http"}, connection.receive, connection.send)
        return connection, closed

    connection, closed = asyncio.run(go())
    headers = dict(connection.sent[0]["headers"])
    assert headers[b"content-type"].startswith(b"text/event-stream")
    assert headers[b"cache-control"] == b"no-cache"
    assert b"content-length" not in headers
    assert connection.body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert connection.sent[-1]["more_body"] is False
    assert closed == [1]


def test_a_stream_ends_when_the_client_leaves():
    async def go():
        connection, closed = Connection(), []
        response = EventStream(numbers(1000, pause_s=0.005), lambda: closed.append(1))
        task = asyncio.create_task(response({"type": "http"}, connection.receive, connection.send))
        await asyncio.sleep(0.03)
        connection.leave()
        async with asyncio.timeout(1):
            await task
        return connection, closed

    connection, closed = asyncio.run(go())
    assert 0 < len(connection.sent) < 100
    assert closed == [1]


def test_a_silent_stream_says_that_it_lives(monkeypatch):
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.01)

    async def go():
        connection = Connection()
        await EventStream(numbers(1, pause_s=0.06), lambda: None)({}, connection.receive, connection.send)
        return connection.body

    body = asyncio.run(go())
    assert body.startswith(b": keep-alive\n\n")
    assert body.endswith(b"data: 0\n\n")
