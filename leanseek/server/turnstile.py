"""Turnstile: tells a request at its head that there is no room for it, before anything is made of it.

What a refusal takes is taken from the replies that are under way, and under overload there are many times more
refusals than replies.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from functools import lru_cache

from leanseek.errors import LeanseekError
from leanseek.server.bridge import Bridge
from leanseek.server.gate import MARKS, Gate, named
from leanseek.server.journal import Journal
from leanseek.server.refusal import as_api_error, error_response, speaks_anthropic
from leanseek.server.ticket import OverloadedError


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
        try:
            self._bridge.make_room(1 + max(self._inside - self._bridge.under_way, 0))
        except OverloadedError as error:
            path = _path(target).decode()
            status, sent, body = _answer(str(error), error.retry_s, speaks_anthropic(path))
            request_id = secrets.token_hex(16)
            self._journal.note("POST", path, status, request_id)
            names = b"".join(b"%b: %b\r\n" % pair for pair in named(request_id.encode(), path))
            return status, b"%b%b\r\n%b" % (sent, names, body)
        except LeanseekError:  # the application says what is wrong
            pass
        self._inside += 1
        return None

    def leave(self) -> None:
        """Say that the answer to a request that was let in is over."""
        self._inside -= 1


def _path(target: bytes) -> bytes:
    return target.partition(b"?")[0]


@lru_cache(maxsize=256)
def _answer(message: str, retry_s: int, anthropic: bool) -> tuple[int, bytes, bytes]:
    """Return status, headers and body of a refusal: the same words many times a second are put together once."""
    path = "/anthropic/" if anthropic else ""
    answer = error_response(as_api_error(OverloadedError(message, retry_s)), path)
    headers = b"".join(b"%b: %b\r\n" % pair for pair in (*answer.raw_headers, *MARKS))
    return answer.status_code, headers, bytes(answer.body)
