"""Turnstile: tells a request at its head that there is no room for it, before anything is made of it.

What a refusal takes is taken from the replies that are under way, and under overload there are many times more
refusals than replies.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import NamedTuple

from leanseek.errors import LeanseekError
from leanseek.server.bridge import Bridge
from leanseek.server.gate import MARKS, Gate, named
from leanseek.server.journal import Journal
from leanseek.server.refusal import as_api_error, error_response, speaks_anthropic
from leanseek.server.ticket import OverloadedError

HEAD_END = b"\r\n\r\n"
# Heads that clients send again and again are read once; longer ones are not kept.
KEPT_HEADS = 256
KEPT_HEAD_BYTES = 4096
# Headers by which a request has a body of another form, or an answer that is not whole and at once.
UNUSUAL = frozenset({b"transfer-encoding", b"expect", b"upgrade"})
_FIRST = re.compile(rb"POST ([\w/.~-]+(?:\?[\w/.~%&=-]*)?) HTTP/1\.1")
_LINE = re.compile(rb"([A-Za-z0-9-]+):[ \t]*([\t -~\x80-\xff]*?)[ \t]*")
_LENGTH = re.compile(rb"[0-9]{1,9}")


class Plain(NamedTuple):
    """A request of the usual kind: one that needs room, may ask for it, and whose connection stays.

    Args:
        target: of its head.
        body_bytes: how long its body is.
    """

    target: bytes
    body_bytes: int


class Turnstile:
    """Stands in front of the application, where HTTP is spoken; one event loop's.

    It counts whom it lets in, since the engine does not know of them before their bodies are read: of all that come at
    once for the last place, one gets it.

    Args:
        bridge: knows whether there is room.
        gate: knows who may ask; who may not is told so by the application.
        journal: notes what is refused.
        paths: whose requests need room.
    """

    def __init__(self, bridge: Bridge, gate: Gate, journal: Journal, paths: Collection[str]) -> None:
        self._bridge, self._gate, self._journal = bridge, gate, journal
        self._paths = frozenset(path.encode() for path in paths)
        self._inside = 0
        self._plain = lru_cache(maxsize=KEPT_HEADS)(self._read)

    def concerns(self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        """Whether a request needs room, and may be told here that there is none.

        Args:
            method, target, headers: of its head; names in lower case.
        """
        path = _path(target)
        if method != b"POST" or path not in self._paths:
            return False
        if any(name == b"origin" for name, _ in headers):  # a web page, whose answers bear headers of their own
            return False
        try:
            self._gate.check(path.decode(), headers)
        except LeanseekError:
            return False
        return True

    def enter(self, target: bytes) -> tuple[int, bytes] | None:
        """Let a request in, if there is room; call `leave` when its answer is over.

        Args:
            target: of its head.
        Returns:
            None; or the answer that there is no room: its status, and its headers and body as they are sent.
        """
        error = self._overload()
        if error is None:
            self._inside += 1
            return None
        return self._told(error, target)

    def turn_away(self, data: bytes) -> tuple[int, bytes] | None:
        """Answer a request for which there is no room by a look at its bytes, before they are parsed.

        Parsing costs a server in Python more than the rest of a refusal, and who is refused comes again with the same
        head.

        Args:
            data: what a connection brought between two requests.
        Returns:
            As `enter`, whose work it is if this is None: there is room, or it is not one whole request of the usual
            kind. Nobody is let in here.
        """
        error = self._overload()
        if error is None:
            return None
        head, end, body = data.partition(HEAD_END)
        if not end or len(head) > KEPT_HEAD_BYTES:
            return None
        plain = self._plain(head)
        return None if plain is None or plain.body_bytes != len(body) else self._told(error, plain.target)

    def leave(self) -> None:
        """Say that the answer to a request that was let in is over."""
        self._inside -= 1

    def _overload(self) -> OverloadedError | None:
        try:
            self._bridge.make_room(1 + max(self._inside - self._bridge.under_way, 0))
        except OverloadedError as error:
            return error
        except LeanseekError:  # the application says what is wrong
            pass
        return None

    def _told(self, error: OverloadedError, target: bytes) -> tuple[int, bytes]:
        path = _path(target).decode()
        status, sent, body = _answer(str(error), error.retry_s, speaks_anthropic(path))
        request_id = secrets.token_hex(16)
        self._journal.note("POST", path, status, request_id)
        names = b"".join(b"%b: %b\r\n" % pair for pair in named(request_id.encode(), path))
        return status, b"%b%b\r\n%b" % (sent, names, body)

    def _read(self, head: bytes) -> Plain | None:
        """Return what a head says, if it is of the usual kind and needs room; the parser judges all others."""
        first, *lines = head.split(b"\r\n")
        asked, pairs = _FIRST.fullmatch(first), [_LINE.fullmatch(line) for line in lines]
        headers = [(pair[1].lower(), pair[2]) for pair in pairs if pair]
        lengths = [value for name, value in headers if name == b"content-length"]
        if (
            asked
            and all(pairs)
            and not any(name in UNUSUAL for name, _ in headers)
            and all(value.lower() == b"keep-alive" for name, value in headers if name == b"connection")
            and len(lengths) == 1
            and _LENGTH.fullmatch(lengths[0])
            and self.concerns(b"POST", asked[1], headers)
        ):
            return Plain(asked[1], int(lengths[0]))
        return None


def _path(target: bytes) -> bytes:
    return target.partition(b"?")[0]


@lru_cache(maxsize=256)
def _answer(message: str, retry_s: int, anthropic: bool) -> tuple[int, bytes, bytes]:
    """Return status, headers and body of a refusal: the same words many times a second are put together once."""
    path = "/anthropic/" if anthropic else ""
    answer = error_response(as_api_error(OverloadedError(message, retry_s)), path)
    headers = b"".join(b"%b: %b\r\n" % pair for pair in (*answer.raw_headers, *MARKS))
    return answer.status_code, headers, bytes(answer.body)
