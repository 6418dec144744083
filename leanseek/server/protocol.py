"""Protocol: HTTP/1.1 as uvicorn speaks it, without patience for clients that never say what they want."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

# Between two requests of a connection, and within the head of a later one, uvicorn's own limit holds.
HEAD_TIMEOUT_S = 30.0


class Protocol(H11Protocol):
    """One connection, which is closed if its first request's head does not arrive in time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, and wait for a while."""
        super().connection_made(transport)
        self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None:
            self.transport.close()
