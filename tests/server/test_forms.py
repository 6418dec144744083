from __future__ import annotations

import json

import pytest

from leanseek.engine.request import Grammar
from leanseek.server.openai import parse_chat_request
from leanseek.server.refusal import ApiError
from tests.server.test_app import send

ASK = [{"role": "user", "content": "1+1"}]
SCHEMA = {"type": "object"}


def form(**fields):
    return parse_chat_request(json.dumps({"messages": ASK, **fields}).encode()).form()


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar("json_object")),
        ({"structured_outputs": {"json": SCHEMA}}, Grammar("json_schema", json.dumps(SCHEMA))),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, Grammar("json_schema", json.dumps(SCHEMA))),
        ({"structured_outputs": {"json_object": True}}, Grammar("json_object")),
        ({"structured_outputs": {"regex": "[a-c]+"}}, Grammar("regex", "[a-c]+")),
        ({"structured_outputs": {"choice": ["a b", 'c"']}}, Grammar("lark", 'start: "a b" | "c\\""')),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, Grammar("lark", 'start: "a"')),
        ({"guided_json": SCHEMA}, Grammar("json_schema", json.dumps(SCHEMA))),
        ({"guided_choice": ["a"]}, Grammar("lark", 'start: "a"')),
        ({"guided_regex": "a"}, Grammar("regex", "a")),
        ({"guided_grammar": "start: /a/"}, Grammar("lark", "start: /a/")),
    ],
)
def test_a_form_in_any_words(fields, grammar):
    assert form(**fields) == grammar


def test_one_form_at_most():
    with pytest.raises(ApiError, match="2 forms are given"):
        form(guided_regex="a", response_format={"type": "json_object"})


@pytest.mark.parametrize("choice", [["answer", "total"], ['a "b"', "a\\c"], ["größer"]])
def test_a_choice_binds_the_answer(tiny_server, choice):
    body = {"prompt": "start", "max_tokens": 64, "structured_outputs": {"choice": choice}}
    status, _, text = send(tiny_server, "POST", "/v1/completions", json.dumps(body))
    assert status == 200
    assert json.loads(text)["choices"][0]["text"] in choice
    body = {"messages": ASK, "max_tokens": 64, "guided_choice": choice, "thinking": {"type": "disabled"}}
    status, _, text = send(tiny_server, "POST", "/v1/chat/completions", json.dumps(body))
    assert status == 200
    assert json.loads(text)["choices"][0]["message"]["content"] in choice
