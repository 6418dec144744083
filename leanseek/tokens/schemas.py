"""Schemas: the JSON schema of a tool's arguments, taken apart for a grammar."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from leanseek.errors import UsageError
from leanseek.messages import ToolSpec

Schema = Mapping[str, Any]
# How JSON is written. At most so much white space at one place: a model must not fill its reply with it.
JSON_OPTIONS = {"whitespace_pattern": r"[ \n\r\t]{1,40}", "coerce_one_of": True}
# Longest text whose length a grammar counts.
MOST_COUNTED = 1000
_SAY_NOTHING = {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment"}
_DEFINITIONS = ("$defs", "definitions")
_SIMPLE = {"type", "properties", "required", "additionalProperties", "$schema", "$id", "x-guidance", *_DEFINITIONS}
_TYPES = ("string", "number", "boolean", "null", "array", "object")
# What a keyword is about, where a schema does not say its type.
_ABOUT = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties"},
}
_NO_TAG = "^[^<]*$"
_ANY = "leanseek-any"


def json_term(schema: Schema, **options: Any) -> str:
    """Return the term of a rule for JSON of this schema, with some more of llguidance's options."""
    return f"%json {json.dumps({**schema, 'x-guidance': {**JSON_OPTIONS, **options}})}"


@dataclass(frozen=True)
class Value:
    """A value that is written as JSON."""

    schema: Schema


@dataclass(frozen=True)
class Raw:
    """A text that may be written as it is.

    Args:
        times: how long, as a regular expression says it: `*` or `{least,most}`.
        schema: of the text as JSON.
    """

    times: str
    schema: Schema


def arguments_of(tool: ToolSpec) -> dict[str, Any]:
    """Return the schema of a tool's arguments, as an object's; without a schema, the empty object's.

    Where a schema lists properties and says nothing of others, there are no others.

    Raises:
        UsageError: it is the schema of something else.
    """
    schema = dict(tool.parameters) or {"properties": {}}
    if schema.setdefault("type", "object") != "object":
        raise UsageError(
            f"parameters of the tool {tool.name!r} are of type {str(schema['type'])[:80]!r}; an object's schema is "
            f"accepted"
        )
    if not isinstance(schema.get("properties", {}), Mapping):
        raise UsageError(f"parameters of the tool {tool.name!r}: properties must be an object")
    if "properties" in schema and not _combines(schema):
        schema.setdefault("additionalProperties", False)
    return schema


def parameters_of(tool: ToolSpec) -> list[tuple[str, Schema, bool]] | None:
    """Return a tool's parameters one by one: name, schema, whether it must be given; None: any may be.

    Raises:
        UsageError: a strict tool whose schema says more than that.
    """
    schema = arguments_of(tool)
    if _combines(schema) and tool.strict:
        more = ", ".join(sorted(set(schema) - _SIMPLE - _SAY_NOTHING))
        raise UsageError(
            f"parameters of the strict tool {tool.name!r} have {more}; this chat format writes parameters one by one, "
            f"and can only hold a list of properties"
        )
    required = [name for name in schema.get("required", ()) if isinstance(name, str)]
    properties: dict[str, Any] = {name: {} for name in required} | dict(schema.get("properties", {}))
    if not properties and "properties" not in schema:
        return None
    order = [*schema.get("properties", {}), *(name for name in required if name not in schema.get("properties", {}))]
    return [(name, _with_definitions(properties[name], schema), name in required) for name in order]


def alternatives(schema: Any, depth: int = 0) -> Iterator[Value | Raw | str]:
    """Yield the ways to write a value: as JSON, as text of some length, or one certain text."""
    while isinstance(schema, Mapping) and depth < 16 and set(_said(schema)) == {"$ref"}:
        target = _target(schema)
        if target is None:
            break
        schema, depth = _with_definitions(target, schema), depth + 1
    said = _said(schema) if isinstance(schema, Mapping) else {}
    if schema is True or (isinstance(schema, Mapping) and not said):
        yield Raw("*", {"type": "string"})
        yield Value({})
    elif depth < 16 and len(said) == 1 and isinstance(members := said.get("anyOf", said.get("oneOf")), list):
        for one in members:
            yield from alternatives(_with_definitions(one, schema), depth + 1)
    elif depth < 16 and isinstance(kinds := said.get("type"), list) and not {"enum", "const"} & set(said):
        for kind in kinds:
            about = _ABOUT.get("number" if kind == "integer" else kind, set())
            others = set().union(*_ABOUT.values()) - about
            kept = {key: value for key, value in schema.items() if key not in others}
            yield from alternatives({**kept, "type": kind}, depth + 1)
    elif set(said) <= {"type", "enum"} and isinstance(said.get("enum"), list):
        texts = [one for one in said["enum"] if isinstance(one, str)]
        yield from texts
        if len(texts) < len(said["enum"]):
            yield Value({**schema, "enum": [one for one in said["enum"] if not isinstance(one, str)]})
    elif set(said) <= {"type", "const"} and isinstance(said.get("const"), str):
        yield said["const"]
    elif said.get("type") == "string" and set(said) <= {"type", "minLength", "maxLength"}:
        least, most = said.get("minLength", 0), said.get("maxLength")
        if not least and most is None:
            yield Raw("*", schema)
        elif all(isinstance(one, int) and 0 <= one <= MOST_COUNTED for one in (least, most or 0)):
            yield Raw(f"{{{least},{'' if most is None else most}}}", schema)
        else:
            yield Value(schema)
    else:
        yield Value(schema)


def without_tags(schema: Any) -> dict[str, Any]:
    """Return a schema of values whose JSON has no `<`, so that no tag can stand in it; it allows nothing new."""
    found = _untagged(schema if schema is not False else {"enum": []})
    return {**found, "$defs": {**found.get("$defs", {}), _ANY: _any()}}


def _untagged(schema: Any) -> dict[str, Any]:
    if not isinstance(schema, Mapping) or not _said(schema):
        return {"$ref": f"#/$defs/{_ANY}"}
    found = dict(schema)
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        if isinstance(found.get(key), list):
            found[key] = [_untagged(one) for one in found[key]]
    for key in (*_DEFINITIONS, "properties", "patternProperties"):
        if isinstance(found.get(key), Mapping):
            found[key] = {name: _untagged(one) for name, one in found[key].items()}
    if "enum" in found or "const" in found:
        values = found.pop("enum", [found.pop("const", None)])
        return {**found, "enum": [one for one in values if "<" not in str(one)]}
    if set(found) & {"$ref", "anyOf", "oneOf", "allOf"}:
        return found
    kinds = found.get("type") or [kind for kind, about in _ABOUT.items() if about & set(found)] or list(_TYPES)
    found["type"] = kinds
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "string" in kinds:
        patterns = [found.pop("pattern"), _NO_TAG] if "pattern" in found else [_NO_TAG]
        found |= {"pattern": patterns[0]} if len(patterns) == 1 else {"allOf": [{"pattern": one} for one in patterns]}
    if "array" in kinds:
        found["items"] = _untagged(found.get("items", True)) if found.get("items") is not False else False
    if "object" in kinds:
        more = found.get("additionalProperties", True)
        if more is not False and not found.get("properties") and "patternProperties" not in found:
            found["patternProperties"] = {_NO_TAG: _untagged(more)}
        found["additionalProperties"] = False
    return found


def _any() -> dict[str, Any]:
    here = {"$ref": f"#/$defs/{_ANY}"}
    objects = {"type": "object", "patternProperties": {_NO_TAG: here}, "additionalProperties": False}
    plain = [{"type": kind} for kind in ("number", "boolean", "null")]
    return {"anyOf": [{"type": "string", "pattern": _NO_TAG}, *plain, {"type": "array", "items": here}, objects]}


def _said(schema: Schema) -> dict[str, Any]:
    """Return what restricts a value."""
    return {key: value for key, value in schema.items() if key not in _SAY_NOTHING and key not in _DEFINITIONS}


def _combines(schema: Schema) -> bool:
    return bool(set(schema) - _SIMPLE - _SAY_NOTHING)


def _with_definitions(schema: Any, root: Schema) -> Any:
    """Return a part of a schema with what it may refer to."""
    if not isinstance(schema, Mapping):
        return schema
    return {**{key: root[key] for key in _DEFINITIONS if key in root}, **schema}


def _target(schema: Schema) -> Any:
    """Return what a reference names, if that is a definition at the top."""
    parts = str(schema["$ref"]).split("/")
    if len(parts) != 3 or parts[0] != "#" or parts[1] not in _DEFINITIONS:
        return None
    definitions = schema.get(parts[1])
    return definitions.get(parts[2]) if isinstance(definitions, Mapping) else None
