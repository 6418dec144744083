"""Forms: what an answer must be, as OpenAI's clients and vLLM's say it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from leanseek.engine.request import Grammar
from leanseek.server.refusal import ApiError
from leanseek.server.wire import Schema, Wire

MOST_CHOICES = 1024
GrammarText = Annotated[str, Field(max_length=1 << 18)]
Choices = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=4096)]], Field(min_length=1, max_length=MOST_CHOICES)
]


class JsonSchema(Wire):
    """A schema that the answer must keep to."""

    name: Annotated[str, Field(max_length=256)] | None = None
    schema_: Annotated[Schema | None, Field(alias="schema")] = None
    strict: bool | None = None


class ResponseFormat(Wire):
    """OpenAI's: the form of the answer; a grammar is given as its custom tools have it."""

    type: Literal["text", "json_object", "json_schema", "grammar"] = "text"
    json_schema: JsonSchema | None = None
    syntax: Literal["lark", "regex"] = "lark"
    definition: GrammarText | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and (self.json_schema is None or self.json_schema.schema_ is None):
            raise PydanticCustomError("json_schema", "a format of this type needs json_schema with a schema")
        if self.type == "grammar" and self.definition is None:
            raise PydanticCustomError("definition", "a format of this type needs a definition")
        return self

    def grammar(self) -> Grammar | None:
        """Return what the answer must be; None: anything."""
        if self.type == "json_schema":
            assert self.json_schema is not None
            return Grammar("json_schema", json.dumps(self.json_schema.schema_))
        if self.type == "grammar":
            return Grammar(self.syntax, self.definition or "")
        return Grammar("json_object") if self.type == "json_object" else None


class StructuredOutputs(Wire):
    """vLLM's: one of several ways to bind an answer."""

    json_: Annotated[Schema | GrammarText | None, Field(alias="json")] = None
    json_object: bool | None = None
    regex: GrammarText | None = None
    choice: Choices | None = None
    grammar_: Annotated[GrammarText | None, Field(alias="grammar")] = None

    def grammars(self) -> list[Grammar]:
        """Return what is asked for."""
        return _grammars(self.json_, self.regex, self.choice, self.grammar_, json_object=bool(self.json_object))


class Formed(Wire):
    """A request whose answer may be bound: in OpenAI's words, in vLLM's, or in vLLM's older ones."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Schema | GrammarText | None = None
    guided_regex: GrammarText | None = None
    guided_choice: Choices | None = None
    guided_grammar: GrammarText | None = None

    def form(self) -> Grammar | None:
        """Return what the answer must be; None: anything.

        Raises:
            ApiError: more than one form is given.
        """
        found = _grammars(self.guided_json, self.guided_regex, self.guided_choice, self.guided_grammar)
        if self.response_format is not None and (one := self.response_format.grammar()) is not None:
            found.append(one)
        if self.structured_outputs is not None:
            found += self.structured_outputs.grammars()
        if len(found) > 1:
            message = f"{len(found)} forms are given (response_format, structured_outputs, guided_...): give one"
            raise ApiError(422, message, code="invalid_parameter", param="response_format")
        return found[0] if found else None


def _grammars(
    schema: object, regex: str | None, choice: Sequence[str] | None, lark: str | None, *, json_object: bool = False
) -> list[Grammar]:
    found = []
    if schema is not None:
        found.append(Grammar("json_schema", schema if isinstance(schema, str) else json.dumps(schema)))
    if json_object:
        found.append(Grammar("json_object"))
    if regex is not None:
        found.append(Grammar("regex", regex))
    if choice is not None:
        found.append(Grammar("lark", "start: " + " | ".join(json.dumps(one, ensure_ascii=False) for one in choice)))
    if lark is not None:
        found.append(Grammar("lark", lark))
    return found
