"""Gate: what every request passes first: a request id, who may ask, which host name was meant."""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leanseek.errors import LeanseekError, UsageError
from leanseek.server.refusal import ApiError, as_api_error, error_response, speaks_anthropic

# Answered without a key: whether the server lives, and the page, which asks for the key itself.
OPEN_PATHS = ("/", "/health", "/ready")
# Headers of every answer, beside its request's id.
MARKS = ((b"x-content-type-options", b"nosniff"),)


def named(request_id: bytes, path: str) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers of a request's id; Anthropic's clients have a name of their own for it."""
    own = ((b"request-id", request_id),) if speaks_anthropic(path) else ()
    return ((b"x-request-id", request_id), *own)


class Gate:
    """Wraps the application.

    Args:
        app: what answers a request that may pass.
        api_keys: any of them opens; none: everybody may ask, but only under a local host name, so
            that a web page cannot reach the server through a name that it points at this machine.
        open_paths: answered without a key.
        any_host: whether names that are not local are answered without keys too.
    """

    def __init__(
        self,
        app: ASGIApp,
        api_keys: Sequence[str] = (),
        *,
        open_paths: Sequence[str] = OPEN_PATHS,
        any_host: bool = False,
    ) -> None:
        self._app, self._open_paths, self._any_host = app, frozenset(open_paths), any_host
        self._keys = [key.encode() for key in api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(16).encode()

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                marks = (*named(request_id, scope["path"]), *MARKS)
                message = {**message, "headers": [*message["headers"], *marks]}
            await send(message)

        try:
            self.check(scope["path"], scope["headers"])
        except LeanseekError as error:
            await error_response(as_api_error(error), scope["path"])(scope, receive, send_marked)
        else:
            await self._app(scope, receive, send_marked)

    def check(self, path: str, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """See that a request may pass.

        Args:
            path: of it.
            headers: names in lower case.
        Raises:
            ApiError: it may not.
        """
        if not self._keys:
            name = _host_name(_first(headers, b"host", "localhost"))
            if not self._any_host and not is_loopback(name):
                raise ApiError(
                    403,
                    f"the server has no API key, so it answers under local names alone, not {name!r}; "
                    "ask http://127.0.0.1, or start it with --api-key-file",
                    code="host_not_allowed",
                )
        elif path not in self._open_paths:
            scheme, _, key = _first(headers, b"authorization").partition(" ")
            bearer = key.strip() if scheme.lower() == "bearer" else ""
            given = (bearer or _first(headers, b"x-api-key").strip()).encode()
            # Every key is compared, each in constant time: the answer's delay tells nothing.
            if not sum(hmac.compare_digest(given, known) for known in self._keys):
                message = (
                    "the API key is wrong"
                    if given
                    else "an API key is needed: Authorization: Bearer KEY, or X-Api-Key: KEY"
                )
                raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def read_keys(path: str | Path) -> tuple[str, ...]:
    """Read a file of API keys, one a line; empty lines and those that begin with # are left out.

    Raises:
        UsageError: the file cannot be read, has no key, or a key cannot stand in a header.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: the API keys cannot be read ({error})") from None
    lines = [line.strip() for line in text.splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise UsageError(f"{path} has no API key; write one a line")
    if any(not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise UsageError(f"{path}: an API key is made of ASCII characters without spaces")
    return keys


@lru_cache(maxsize=64)  # the same few names, many times a second
def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"


def _first(headers: Sequence[tuple[bytes, bytes]], name: bytes, default: str = "") -> str:
    """Return the value of the first header of that name."""
    return next((value.decode("latin-1") for known, value in headers if known == name), default)


def _host_name(header: str) -> str:
    """Return a Host header's name without its port: "[::1]:8000" -> "::1"."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]
