"""Protocol: HTTP/1.1 as uvicorn speaks it, without patience for clients that never say what they want."""

from __future__ import annotations

import asyncio

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from leanseek.server.turnstile import Turnstile

HEAD_BYTES = 64 << 10
HEAD_TIMEOUT_S = 30.0
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_CLOSE = (b"connection", b"close")


class Protocol(HttpToolsProtocol):
    """One connection, which is closed if a request's head does not arrive in time or is too large.

    What comes of a body after its answer has been given is passed over, for as long as a head may take.
    """

    turnstile: Turnstile

    @classmethod
    def behind(cls, turnstile: Turnstile) -> type[Protocol]:
        """Return the class whose connections ask this turnstile first: uvicorn makes them by class."""
        return type("Protocol", (cls,), {"turnstile": turnstile})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, and wait for a while."""
        super().connection_made(transport)
        self._head_bytes, self._got_on = 0, False
        self._refused = self._inside = False
        self._between = True  # no part of a request has been parsed
        self._patience: asyncio.TimerHandle | None = None
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the connection, and with it an answer that was not over."""
        self._stop_waiting()
        self._leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has arrived; what brings the request no further, in a head or behind a body in chunks, counts."""
        if self._between and self._can_refuse and (refusal := self.turnstile.turn_away(data)):
            self._stop_waiting()
            self._refuse(*refusal, stays=True)
            return
        self._got_on = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        if not self._got_on:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self.send_400_response("")
                return
        # From its first byte on, a later head has as long as the first; between two, uvicorn's own limit holds.
        if self._idle and self._patience is None:
            self._wait()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request."""
        if self._head_bytes <= HEAD_BYTES:
            super().send_400_response(msg)
        else:
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        """Begin with a request."""
        super().on_message_begin()
        self._head_bytes, self._got_on, self._between = 0, True, False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_BYTES:
            raise httptools.HttpParserError("the head is too large")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Take a whole head; where there is no room for its request, that is the answer, and its body is passed over.

        A request that came before the answer to the one before it was over waits for that, as all such do; and so does
        one whose client has not taken earlier answers.
        """
        self._got_on = True
        self._stop_waiting()
        refusal = None
        if self._can_refuse:
            if self.turnstile.concerns(self.parser.get_method(), self.url, self.headers):
                refusal = self.turnstile.enter(self.url)
                self._inside = refusal is None
        self._refused = refusal is not None
        if refusal is None:
            super().on_headers_complete()
        else:
            stays = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
            self._refuse(*refusal, stays=stays)

    def on_response_complete(self) -> None:
        """End an answer."""
        self._leave()
        super().on_response_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._got_on = True
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Take a body's end."""
        self._between = True
        if not self._refused:
            super().on_message_complete()

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    @property
    def _can_refuse(self) -> bool:
        return self._idle and not self.flow.write_paused

    def _leave(self) -> None:
        if self._inside:
            self._inside = False
            self.turnstile.leave()

    def _refuse(self, status: int, rest: bytes, *, stays: bool) -> None:
        more = self.server_state.default_headers if stays else [*self.server_state.default_headers, _CLOSE]
        self.transport.write(b"".join([STATUS_LINE[status], *(b"%b: %b\r\n" % pair for pair in more), rest]))
        self.on_response_complete()
        if not stays:
            self.transport.close()

    def _wait(self) -> None:
        self._patience = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        if self._idle:
            self.transport.close()
