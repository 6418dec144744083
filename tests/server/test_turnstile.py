from __future__ import annotations

import json
import random

import httptools
import pytest

from leanseek.server.bridge import Bridge
from leanseek.server.gate import Gate
from leanseek.server.journal import Journal
from leanseek.server.metrics import Metrics
from leanseek.server.ticket import OverloadedError
from leanseek.server.turnstile import KEPT_HEAD_BYTES, Turnstile

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


BODY = b'{"model": "m"}'


def whole(target: bytes = CHAT, *lines: bytes, body: bytes = BODY, length: int | None = None) -> bytes:
    head = [b"POST %b HTTP/1.1" % target, b"Host: localhost", b"content-length: %d" % (length or len(body)), *lines]
    return b"\r\n".join([*head, b"", body])


def full(*keys: str) -> Turnstile:
    paths = {CHAT.decode(), MESSAGES.decode()}
    return Turnstile(Full(), Gate(nobody, keys), Journal(nobody, Metrics(), paths), paths)


@pytest.mark.parametrize(
    "data",
    [whole(), whole(CHAT + b"?a=b"), whole(MESSAGES), whole(CHAT, b"Connection: Keep-Alive"), whole(body=b"\r\n\r\n")],
)
def test_a_whole_request_is_turned_away_as_at_its_head(data):
    turnstile = full()
    target = data.split(b" ")[1]
    away, headed = parts(turnstile.turn_away(data)), parts(turnstile.enter(target))
    for _, headers, _ in (away, headed):
        headers.pop("request-id", None)
        assert len(headers.pop("x-request-id")) == 32
    assert away == headed


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n",
        whole()[:-1],  # not all of it yet
        whole() + whole(),  # and the next behind it
        whole().partition(b"\r\n\r\n")[0],
        whole(b"/v1/models"),
        whole().replace(b"POST", b"GET"),
        whole().replace(b"1.1", b"1.0"),
        whole(CHAT, b"Connection: close"),
        whole(CHAT, b"Transfer-Encoding: chunked"),
        whole(CHAT, b"Expect: 100-continue"),
        whole(CHAT, b"Connection: Upgrade", b"Upgrade: h2c"),
        whole(CHAT, b"Origin: http://localhost"),
        whole(CHAT, b"content-length: 14"),
        whole(CHAT, b" folded: line"),
        whole(CHAT, b"a: b\nc: d"),
        whole(CHAT, b"no colon"),
        whole(CHAT, b"a : b"),
        whole().replace(b"localhost", b"example.com"),
        whole(CHAT, b"a: " + b"b" * KEPT_HEAD_BYTES),
    ],
)
def test_all_other_bytes_are_the_parsers(data):
    assert full().turn_away(data) is None


def test_who_may_not_ask_is_not_turned_away():
    turnstile = full("alpha")
    assert turnstile.turn_away(whole()) is None
    assert turnstile.turn_away(whole(CHAT, b"Authorization: Bearer beta")) is None
    assert turnstile.turn_away(whole(CHAT, b"Authorization: Bearer alpha")) is not None


def test_with_room_nobody_is_turned_away_nor_let_in():
    bridge = Full(room=1)
    bridge.under_way = 0
    turnstile = Turnstile(bridge, Gate(nobody), Journal(nobody, Metrics(), ()), {CHAT.decode()})
    assert turnstile.turn_away(whole()) is None
    assert turnstile.enter(CHAT) is None  # the place is still there
    assert turnstile.turn_away(whole()) is not None


class Parsed:
    """What a parser of HTTP makes of bytes."""

    def __init__(self, data: bytes) -> None:
        self.messages, self.url, self.names = 0, b"", []
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(data)
        self.method, self.stays = parser.get_method(), parser.should_keep_alive()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.names.append(name.lower())

    def on_message_complete(self) -> None:
        self.messages += 1


def test_what_is_turned_away_is_one_whole_request_to_a_parser_too():
    rng, turnstile, turned_away = random.Random(0), full(), 0
    start = whole(CHAT + b"?x", b"a: b", b"Connection: keep-alive")
    for _ in range(20_000):
        data = bytearray(start)
        for _ in range(rng.randint(0, 3)):
            at = rng.randrange(len(data))
            piece = rng.choice(
                [b"", b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"\0", b"1", b"\x80", b"x", data[at : at + 9]]
            )
            data[at : at + rng.randint(0, 2)] = piece
        if refusal := turnstile.turn_away(bytes(data)):
            turned_away += 1
            parsed = Parsed(bytes(data))
            assert (parsed.messages, parsed.method, parsed.stays) == (1, b"POST", True)
            assert parsed.url.partition(b"?")[0] == CHAT and b"transfer-encoding" not in parsed.names
            assert refusal[0] == 429
    assert 4_000 < turned_away < 16_000
