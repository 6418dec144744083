"""Schemas of arguments: an object's, one parameter after the other, and the ways to write each."""

from __future__ import annotations

import pytest

from leanseek.errors import UsageError
from leanseek.messages import ToolSpec
from leanseek.tokens.schemas import Raw, Value, alternatives, arguments_of, parameters_of, without_tags


def test_arguments_are_an_object_of_the_listed_properties() -> None:
    assert arguments_of(ToolSpec("f")) == {"type": "object", "properties": {}, "additionalProperties": False}
    listed = {"properties": {"a": {}}}
    assert arguments_of(ToolSpec("f", "", listed))["additionalProperties"] is False
    assert "additionalProperties" not in arguments_of(ToolSpec("f", "", {**listed, "anyOf": [{}]}))
    assert arguments_of(ToolSpec("f", "", {**listed, "additionalProperties": True}))["additionalProperties"] is True
    assert listed == {"properties": {"a": {}}}
    for bad in ({"type": ["object", "null"]}, {"properties": 3}):
        with pytest.raises(UsageError, match="parameters of the tool 'f'"):
            arguments_of(ToolSpec("f", "", bad))


def test_schemas_taken_apart() -> None:
    assert list(alternatives(True)) == list(alternatives({"title": "t"})) == [Raw("*", {"type": "string"}), Value({})]
    assert list(alternatives({"const": "a"})) == ["a"]
    assert [type(one) for one in alternatives({"type": ["string", "null"], "maxLength": 3})] == [Raw, Value]
    long = {"type": "string", "maxLength": 10**6}
    assert list(alternatives(long)) == [Value(long)]
    loop = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    assert len(list(alternatives(loop))) == 1
    assert parameters_of(ToolSpec("f", "", {"type": "object"})) is None
    assert parameters_of(ToolSpec("f")) == []
    assert parameters_of(ToolSpec("f", "", {"properties": {"b": {}}, "required": ["c", "b"]})) == [
        ("b", {}, True),
        ("c", {}, True),
    ]


def test_a_schema_without_tags_restricts_every_text() -> None:
    found = without_tags({"properties": {"a": {"type": "string"}, "b": {"enum": ["<b>", "b"]}}, "title": "<"})
    assert found["properties"]["a"]["pattern"] == "^[^<]*$"
    assert found["properties"]["b"]["enum"] == ["b"]
    assert found["additionalProperties"] is False
    assert without_tags({})["$ref"] == "#/$defs/leanseek-any"
