"""Journal: what is noted of every request: a count, and if wanted a line of JSON without anything that was said."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leanseek.server.metrics import Metrics

# What servers log for a client that went away; nobody reads it.
CLIENT_CLOSED_REQUEST = 499
# Where endpoints put what they want noted.
NOTED = "leanseek.noted"


class Journal:
    """Wraps the application.

    Args:
        app: what answers.
        metrics: counts requests.
        paths: those that are counted by their names; others count together.
        write: takes a line of the access log; None: there is none.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, paths: Collection[str], write: Callable[[str], None] | None = None
    ) -> None:
        self._app, self._metrics, self._paths, self._write = app, metrics, frozenset(paths), write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and note how it went."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_s = time.monotonic()
        status, request_id = CLIENT_CLOSED_REQUEST, ""
        noted: dict[str, Any] = {}
        scope[NOTED] = noted

        async def send_watched(message: Message) -> None:
            nonlocal status, request_id
            if message["type"] == "http.response.start":
                status = message["status"]
                request_id = dict(message["headers"]).get(b"x-request-id", b"").decode("latin-1")
            await send(message)

        try:
            await self._app(scope, receive, send_watched)
        finally:
            self.note(scope["method"], scope["path"], status, request_id, time.monotonic() - began_s, noted)

    def note(
        self,
        method: str,
        path: str,
        status: int,
        request_id: str,
        seconds: float = 0.0,
        noted: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Note how a request went.

        Args:
            method, path, status, request_id: of it and its answer.
            seconds: from its head to its answer's end.
            noted: what else is told of it.
        """
        path = path if path in self._paths else "other"
        self._metrics.answered(path, status)
        if self._write is not None:
            line = {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "request_id": request_id,
                "method": method,
                "path": path,
                "status": status,
                "seconds": round(seconds, 4),
                **noted,
            }
            self._write(json.dumps(line))
