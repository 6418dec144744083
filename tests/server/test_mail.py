from __future__ import annotations

import asyncio

import pytest

from leanseek.engine.request import Event, SamplingParams
from leanseek.errors import EngineError
from leanseek.server import mail
from leanseek.server.bill import Share
from leanseek.server.mail import Mail
from leanseek.server.ticket import Ticket


def ticket() -> Ticket:
    return Ticket([1], SamplingParams(), "", lambda ticket: None, Share())


def said(token: int, reason: str | None = None) -> Event:
    return Event("name", 0, token, -1.0, reason)


class Box:
    """Stands for what a coroutine takes of its ticket."""

    def __init__(self, one: Ticket, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bursts: list[list[int]] = []
        monkeypatch.setattr(one, "deliver", lambda items: self.bursts.append([item.token_id for item in items]))


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_what_is_said_while_others_are_written_comes_together(monkeypatch):
    monkeypatch.setattr(mail, "WRITE_S", 0.01)

    async def run() -> tuple[list[list[int]], list[list[int]]]:
        tickets = [ticket() for _ in range(2)]
        first, second = (Box(one, monkeypatch) for one in tickets)
        post = Mail(lambda lost: None).post
        post({one: [said(1)] for one in tickets})
        await turns()
        assert first.bursts == second.bursts == [[1]]  # beginnings go out at once
        for token in (2, 3):
            post({one: [said(token)] for one in tickets})
            await turns()
        assert first.bursts == second.bursts == [[1]]
        post({tickets[1]: [said(4, "stop")]})  # and so do ends, behind what waits
        await turns()
        assert second.bursts == [[1], [2, 3, 4]]
        await asyncio.sleep(0.05)
        return first.bursts, second.bursts

    assert asyncio.run(run()) == ([[1], [2, 3]], [[1], [2, 3, 4]])


def test_one_stream_alone_waits_for_nothing(monkeypatch):
    async def run() -> list[list[int]]:
        one = ticket()
        box, post = Box(one, monkeypatch), Mail(lambda lost: None).post
        for token in range(4):
            post({one: [said(token)]})
            await asyncio.sleep(0.01)
        return box.bursts

    assert asyncio.run(run()) == [[0], [1], [2], [3]]


def test_a_failure_comes_behind_what_was_said(monkeypatch):
    monkeypatch.setattr(mail, "WRITE_S", 10.0)

    async def run() -> None:
        one, post = ticket(), Mail(lambda lost: None).post
        post({one: [said(1)]})
        await turns()
        post({one: [said(2)]})
        post({one: [EngineError("it broke")]})
        got = []
        with pytest.raises(EngineError, match="it broke"):
            async for event in one:
                got.append(event.token_id)
        assert got == [1, 2]

    asyncio.run(run())


def test_tickets_of_a_loop_that_is_closed_are_lost():
    async def make() -> list[Ticket]:
        return [ticket(), ticket()]

    tickets, lost = asyncio.run(make()), []
    post = Mail(lost.append).post
    for _ in range(2):
        post({one: [said(1)] for one in tickets})
    assert lost == 2 * tickets
