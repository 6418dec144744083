"""Refusal: a failure that a client is told of, in the envelope of its protocol."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from leanseek.errors import LeanseekError, ServerError, UsageError
from leanseek.server.jsontext import to_json
from leanseek.server.ticket import BehindError, NotReadyError, OverloadedError, RefusedError, WaitedError

ERROR_TYPES = {
    401: "authentication_error",
    402: "insufficient_balance_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
# Anthropic's names; a field that is wrong is its 400.
ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}
ANTHROPIC_STATUS = {422: 400}
Request = TypeVar("Request", bound=BaseModel)


class ApiError(ServerError):
    """A failure that a client is told of.

    Args:
        status: of the HTTP answer.
        message: what is wrong, and what is accepted.
        code: short name for programs; None where the status says it all.
        param: the field that is wrong, if it is one.
        headers: to answer with.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = headers or {}

    def envelope(self) -> dict[str, Any]:
        """Return the error as OpenAI's and DeepSeek's clients expect it."""
        kind = ERROR_TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def anthropic_envelope(self) -> dict[str, Any]:
        """Return the error as Anthropic's clients expect it."""
        kind = ANTHROPIC_TYPES.get(self.status, "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": self.message}}


def as_api_error(error: LeanseekError) -> ApiError:
    """Return a failure as a client is told of it."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, WaitedError):
        return ApiError(503, str(error), code="queue_timeout", headers={"retry-after": str(error.retry_s)})
    if isinstance(error, OverloadedError):
        return ApiError(429, str(error), code="overloaded", headers={"retry-after": str(error.retry_s)})
    if isinstance(error, NotReadyError):
        return ApiError(503, str(error), code="not_ready", headers={"retry-after": "1"})
    if isinstance(error, BehindError):
        return ApiError(408, str(error), code="client_too_slow")
    if isinstance(error, RefusedError | UsageError):
        return ApiError(400, str(error), code="invalid_request")
    return ApiError(500, str(error), code="engine_failed")


def error_response(error: ApiError, path: str = "") -> Response:
    """Return the answer that tells a client of a failure, as the protocol of that path has it."""
    if speaks_anthropic(path):
        status = ANTHROPIC_STATUS.get(error.status, error.status)
        return Response(to_json(error.anthropic_envelope()), status, error.headers, "application/json")
    return Response(to_json(error.envelope()), error.status, error.headers, "application/json")


def speaks_anthropic(path: str) -> bool:
    """Whether a path belongs to Anthropic's protocol."""
    return path.startswith(("/v1/messages", "/anthropic/"))


def parse_body(model: type[Request], body: bytes, needed: str) -> Request:
    """Read and check a request's body.

    Args:
        model: what it must be.
        body: as sent.
        needed: the field that every such request has, for the error.
    Raises:
        ApiError: 400 if it is not a JSON object, 422 if a field is wrong.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error, needed) from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply", code="invalid_json") from None


def _refusal(error: ValidationError, needed: str) -> ApiError:
    problems = error.errors(include_url=False, include_context=False)
    first = problems[0]
    if first["type"] == "json_invalid":
        return ApiError(
            400, f"the body is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}", code="invalid_json"
        )
    if not first["loc"] and not isinstance(first["input"], dict):
        return ApiError(400, f"the body must be a JSON object with {needed}", code="invalid_request")
    param = ".".join(str(part) for part in first["loc"]) or needed
    got = "" if isinstance(first["input"], dict | list | tuple) else f" = {_short(first['input'])}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return ApiError(422, f"{param}{got}: {first['msg'].lower()}{more}", code="invalid_parameter", param=param)


def _short(value: Any) -> str:
    try:
        return json.dumps(value)[:80]
    except (TypeError, ValueError):
        return type(value).__name__
