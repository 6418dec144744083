"""Body: how a request's body is read: of bounded size, in bounded time, and checked."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request

from leanseek.server.refusal import ApiError, parse_body

MOST_BODY_BYTES = 4 << 20
BODY_TIMEOUT_S = 30.0
# Larger ones are checked in a thread: others' tokens must not wait for it.
LARGE_BODY_BYTES = 64 << 10

Body = TypeVar("Body", bound=BaseModel)


async def read(request: Request, model: type[Body], needed: str) -> Body:
    """Read and check a request's body.

    Args:
        request: whose.
        model: what it must be.
        needed: the field that every such request has, for the error.
    Raises:
        ApiError: it is too large or too slow, no JSON, or a field is wrong.
    """
    body = await read_bytes(request)
    if len(body) > LARGE_BODY_BYTES:
        return await asyncio.to_thread(parse_body, model, body, needed)
    return parse_body(model, body, needed)


async def read_bytes(request: Request) -> bytes:
    """Read a body of bounded size in bounded time.

    Raises:
        ApiError: it is compressed, too large, too slow, or cut off.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        message = f"the body is encoded as {encoding!r:.40}; only plain JSON is accepted, without content-encoding"
        raise ApiError(415, message, code="unsupported_encoding")
    too_large = ApiError(413, f"the body is larger than {MOST_BODY_BYTES} bytes", code="request_too_large")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > MOST_BODY_BYTES:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                body += part
                if len(body) > MOST_BODY_BYTES:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {BODY_TIMEOUT_S:.0f} s", code="timeout") from None
    except ClientDisconnect:
        raise ApiError(400, "the body was cut off", code="incomplete_body") from None
    return bytes(body)
