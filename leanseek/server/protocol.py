"""Protocol: HTTP/1.1 as uvicorn speaks it, without patience for clients that never say what they want."""

from __future__ import annotations

import asyncio

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 << 10
# Between two requests of a connection, and within the head of a later one, uvicorn's own limit holds.
HEAD_TIMEOUT_S = 30.0
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class Protocol(HttpToolsProtocol):
    """One connection, which is closed if its first request's head does not arrive in time, or any head is too large."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, and wait for a while."""
        super().connection_made(transport)
        self._in_head, self._head_bytes = True, 0
        self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def data_received(self, data: bytes) -> None:
        """Take what has arrived; a part of a head counts while the parser keeps it."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("")

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
        self._in_head, self._head_bytes = True, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_BYTES:
            raise httptools.HttpParserError("the head is too large")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Take a whole head."""
        self._in_head = False
        super().on_headers_complete()

    def _give_up(self) -> None:
        if self.cycle is None:
            self.transport.close()
