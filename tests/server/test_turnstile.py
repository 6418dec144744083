from __future__ import annotations

import json

import pytest

from leanseek.server.bridge import Bridge
from leanseek.server.gate import Gate
from leanseek.server.journal import Journal
from leanseek.server.metrics import Metrics
from leanseek.server.ticket import OverloadedError
from leanseek.server.turnstile import Turnstile

HOST = (b"host", b"localhost")
CHAT, MESSAGES = b"/v1/chat/completions", b"/v1/messages"


class Full(Bridge):
    """A bridge without room."""

    under_way = 3

    def __init__(self, room: int = 0) -> None:
        self.room = room

    def make_room(self, requests: int = 1) -> None:
        if requests > self.room:
            raise OverloadedError("all are busy", 7)


async def nobody(scope, receive, send):
    raise AssertionError("it is not asked")


@pytest.fixture
def lines():
    return []


@pytest.fixture
def ask(lines):
    def make(*keys: str):
        metrics = Metrics()
        paths = {CHAT.decode(), MESSAGES.decode()}
        journal = Journal(nobody, metrics, paths, lines.append)
        turnstile = Turnstile(Full(), Gate(nobody, keys), journal, paths)

        def refuse(method, target, headers):
            return turnstile.enter(target) if turnstile.concerns(method, target, headers) else None

        return refuse, metrics

    return make


def parts(refusal):
    status, rest = refusal
    head, _, body = rest.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
    assert int(headers["content-length"]) == len(body)
    return status, headers, json.loads(body)


def test_a_refusal_is_a_whole_answer_and_is_noted(ask, lines):
    refuse, metrics = ask()
    status, headers, body = parts(refuse(b"POST", CHAT + b"?x=1", [HOST]))
    assert (status, headers["retry-after"], headers["content-type"]) == (429, "7", "application/json")
    assert body["error"] == {"message": "all are busy", "type": "rate_limit_error", "param": None, "code": "overloaded"}
    other = parts(refuse(b"POST", CHAT, [HOST]))[1]
    assert len(headers["x-request-id"]) == 32 and headers["x-request-id"] != other["x-request-id"]
    assert metrics.requests.total == 2
    noted = [json.loads(line) for line in lines]
    assert [one["status"] for one in noted] == [429, 429]
    assert [one["request_id"] for one in noted] == [headers["x-request-id"], other["x-request-id"]]


def test_each_protocol_has_its_own_words(ask):
    assert parts(ask()[0](b"POST", MESSAGES, [HOST]))[2]["type"] == "error"


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        (b"GET", CHAT, [HOST]),
        (b"POST", b"/v1/models", [HOST]),
        (b"POST", b"/v1/chat%2Fcompletions", [HOST]),
        (b"POST", CHAT, [(b"host", b"example.com")]),  # may not ask at all
        (b"POST", CHAT, [HOST, (b"origin", b"http://localhost")]),  # its answer bears headers for browsers
    ],
)
def test_all_else_is_the_applications(ask, method, target, headers):
    assert ask()[0](method, target, headers) is None


def test_with_keys_only_those_who_may_ask_are_told(ask):
    refuse, _ = ask("alpha")
    assert refuse(b"POST", CHAT, [HOST, (b"authorization", b"Bearer beta")]) is None
    assert parts(refuse(b"POST", CHAT, [HOST, (b"authorization", b"Bearer alpha")]))[0] == 429


def test_the_last_place_is_given_once():
    bridge = Full(room=2)
    turnstile = Turnstile(bridge, Gate(nobody), Journal(nobody, Metrics(), ()), {CHAT.decode()})
    bridge.under_way = 0
    assert [turnstile.enter(CHAT) is None for _ in range(3)] == [True, True, False]
    turnstile.leave()
    assert turnstile.enter(CHAT) is None
    bridge.under_way, bridge.room = 2, 0  # by now the engine knows of both
    assert turnstile.enter(CHAT) is not None
