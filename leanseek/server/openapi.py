"""OpenAPI: the server's own description of its requests, made from what checks them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

VERSION = "3.1.0"


def describe(
    paths: Sequence[tuple[str, str, str]], bodies: Mapping[str, type[BaseModel]], version: str
) -> dict[str, Any]:
    """Return the description of all paths.

    Args:
        paths: method, path and what it does.
        bodies: path -> what its body must be.
        version: of the program.
    """
    schemas: dict[str, Any] = {}
    found: dict[str, dict[str, Any]] = {}
    for method, path, about in paths:
        operation: dict[str, Any] = {"summary": about, "responses": _responses(path in bodies)}
        if path in bodies:
            schema = bodies[path].model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= schema.pop("$defs", {})
            schemas[bodies[path].__name__] = schema
            content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{bodies[path].__name__}"}}}
            operation["requestBody"] = {"required": True, "content": content}
        plain = path.replace(":path}", "}")
        if "{" in plain:
            name = plain.partition("{")[2].partition("}")[0]
            place = {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            operation["parameters"] = [place]
        found.setdefault(plain, {})[method.lower()] = operation
    return {
        "openapi": VERSION,
        "info": {"title": "leanseek", "version": version},
        "paths": found,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"key": []}],
    }


def _responses(has_body: bool) -> dict[str, Any]:
    told = {"200": "the answer", "401": "no valid API key", "404": "no such path or model", "503": "not ready"}
    if has_body:
        told |= {
            "400": "the request cannot be served",
            "413": "the body is too large",
            "415": "the body is compressed",
            "422": "a field is wrong",
            "429": "too many requests are under way; Retry-After says when to come again",
            "500": "the engine failed",
        }
    return {status: {"description": about} for status, about in sorted(told.items())}
