from __future__ import annotations

import json

import pytest

from leanseek.engine.request import Grammar
from leanseek.messages import Message, ToolCall, ToolSpec
from leanseek.server.defaults import SamplingDefaults
from leanseek.server.openai import parse_chat_request
from leanseek.server.refusal import ApiError
from leanseek.server.toolbox import Choice

ASK = [{"role": "user", "content": "hello"}]


def parse(**fields):
    return parse_chat_request(json.dumps({"messages": ASK, **fields}).encode())


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "invalid_json"),
        (b"[]", "invalid_request"),
        (b'"messages"', "invalid_request"),
    ],
)
def test_what_is_no_request_at_all_is_400(body, code):
    with pytest.raises(ApiError) as caught:
        parse_chat_request(body)
    assert (caught.value.status, caught.value.code) == (400, code)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": ASK * 5000}, "messages"),
        ({"messages": [{"role": "wizard", "content": ""}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"model": 5}, "model"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1 << 40}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": 1 << 30}, "top_k"),
        ({"min_p": -1}, "min_p"),
        ({"seed": 1 << 63}, "seed"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"stop": ""}, "stop.0"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": ["a" * 300]}, "stop.0"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"logprobs": 5}, "logprobs"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0"),
        ({"tools": [{"type": "web"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tool_choice": "perhaps"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"reasoning_effort": "very"}, "reasoning_effort"),
    ],
)
def test_a_wrong_field_is_422_and_named(fields, param):
    with pytest.raises(ApiError) as caught:
        parse(**fields)
    assert (caught.value.status, caught.value.code, caught.value.param) == (422, "invalid_parameter", param)
    assert str(caught.value).startswith(param)


ALLOWED, THEN = ({"type": "function", "function": {"name": name}} for name in ("now", "then"))
NOW = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}, "strict": True}}


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"top_logprobs": 2}, 422, "top_logprobs"),
        ({"tools": [NOW, NOW]}, 422, "tools"),
        ({"tool_choice": "required"}, 422, "tool_choice"),
        ({"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "then"}}}, 422, "tool_choice"),
        ({"tools": [NOW], "tool_choice": {"type": "allowed_tools", "tools": [ALLOWED, THEN]}}, 422, "tool_choice"),
    ],
)
def test_fields_that_do_not_go_together(fields, status, param):
    with pytest.raises(ApiError) as caught:
        parse(**fields).asked()
    assert (caught.value.status, caught.value.param) == (status, param)


def test_what_changes_nothing_is_accepted():
    request = parse(
        model="m",
        unheard_of={"a": [1]},
        user="someone",
        presence_penalty=0.5,  # in thinking mode DeepSeek ignores it
        tools=[],
        tool_choice="auto",
        logit_bias={},
        response_format={"type": "text"},
        top_logprobs=0,
        stop=None,
        n=None,
        temperature=None,
    )
    assert request.thinks
    assert not parse(thinking={"type": "disabled"}).thinks
    assert parse(tools=[NOW], tool_choice="none").asked().toolbox.offered == ()
    assert request.asked().scope == "someone"


def test_conversation():
    request = parse(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "2"}, {"type": "text", "text": "+3?"}], "name": "x"},
            {"role": "assistant", "content": None, "reasoning_content": "hm"},
            {"role": "user", "content": "grüße 🙂"},
        ]
    )
    assert request.conversation() == [
        Message("system", "be brief"),
        Message("user", "2+3?"),
        Message("assistant", "", "hm"),
        Message("user", "grüße 🙂"),
    ]


def test_tools_in_the_history():
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    asked = parse(
        messages=[
            *ASK,
            {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
        ],
        tools=[NOW],
        parallel_tool_calls=False,
    ).asked()
    assert asked.messages[1:] == (
        Message("assistant", "", "hm", (ToolCall("c1", "now", "{}"),)),
        Message("tool", "12:00", tool_call_id="c1", name="now"),
    )
    assert asked.toolbox.offered == (ToolSpec("now", "", {"type": "object"}, strict=True),)
    assert not asked.toolbox.several


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, Choice()),
        ("auto", Choice()),
        ("none", Choice("none")),
        ("required", Choice("required")),
        ({"type": "function", "function": {"name": "now"}}, Choice("named", "now")),
        ({"type": "function", "name": "now"}, Choice("named", "now")),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [ALLOWED]}},
            Choice("required", allowed=("now",)),
        ),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "now"}]},
            Choice("auto", allowed=("now",)),
        ),
    ],
)
def test_tool_choice(given, expected):
    assert parse(tools=[NOW], tool_choice=given).asked().toolbox.choice == expected


@pytest.mark.parametrize(
    "given",
    [
        {"type": "allowed_tools"},
        {"type": "allowed_tools", "tools": []},
        {"type": "allowed_tools", "mode": "none", "tools": [ALLOWED]},
        {"type": "allowed_tools", "tools": [ALLOWED, {"type": "web_search"}]},
        {"type": "custom", "name": "now"},
    ],
)
def test_a_tool_choice_that_cannot_be(given):
    with pytest.raises(ApiError, match="tool_choice"):
        parse(tools=[NOW], tool_choice=given)


def test_the_form_of_the_answer():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert parse(response_format=form).asked().form == Grammar("json_schema", json.dumps(schema))
    assert parse(response_format={"type": "json_object"}).asked().form == Grammar("json_object")
    assert parse(response_format={"type": "text"}).asked().form is None
    form = {"type": "grammar", "syntax": "regex", "definition": "[0-9]+"}
    assert parse(response_format=form).asked().form == Grammar("regex", "[0-9]+")


@pytest.mark.parametrize(
    ("fields", "thinks", "effort"),
    [
        ({}, True, "high"),
        ({"thinking": {"type": "disabled"}}, False, "none"),
        ({"thinking": {}}, True, "high"),
        ({"reasoning_effort": "none"}, False, "none"),
        ({"reasoning_effort": "minimal"}, True, "low"),
        ({"reasoning_effort": "medium"}, True, "high"),
        ({"reasoning_effort": "ultra"}, True, "max"),
        ({"reasoning_effort": 30}, True, "low"),
        ({"model": "deepseek-chat"}, False, "none"),
        ({"model": "deepseek-chat", "thinking": {"type": "enabled"}}, True, "high"),
        ({"model": "deepseek-reasoner"}, True, "high"),
    ],
)
def test_whether_and_how_long_to_think(fields, thinks, effort):
    request = parse(**fields)
    assert (request.thinks, request.effort) == (thinks, effort)


def test_going_on_with_a_message():
    last = {"role": "assistant", "content": "So", "prefix": True}
    assert parse(messages=[*ASK, last]).asked().goes_on
    assert not parse(messages=[*ASK, last]).thinks  # the answer has begun without
    assert parse(messages=[*ASK, {**last, "reasoning_content": "hm"}]).thinks
    assert not parse(messages=[*ASK, {**last, "prefix": False}]).asked().goes_on


@pytest.mark.parametrize("user_id", ["", "a b", "ü", "x" * 513])
def test_a_user_id_out_of_its_pattern(user_id):
    with pytest.raises(ApiError) as caught:
        parse(user_id=user_id)
    assert (caught.value.status, caught.value.param) == (422, "user_id")


def draw(request, defaults=SamplingDefaults(), room_tokens=100, **options):
    return request.params(defaults, max_tokens=request.asked().max_tokens or room_tokens, **options)


def test_sampling_takes_the_request_before_the_models_defaults():
    defaults = SamplingDefaults(temperature=0.6, top_p=0.95, top_k=40, min_p=0.1)
    params = draw(parse(), defaults)
    assert (params.max_tokens, params.n, params.stop, params.logprobs) == (100, 1, (), None)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.6, 0.95, 40, 0.1)
    asked = parse(temperature=0, top_p=1, top_k=-1, min_p=0, max_tokens=7, n=3, seed=5, stop="x", logprobs=True)
    params = draw(asked, defaults)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0, 1, 0, 0)
    assert (params.max_tokens, params.n, params.seed, params.stop) == (7, 3, 5, ("x",))
    assert asked.asked().logprobs == 0
    assert parse(logprobs=True, top_logprobs=20).asked().logprobs == 20
    greedy = SamplingDefaults(temperature=0.6, do_sample=False)
    assert draw(parse(), greedy).temperature == 0
    assert parse(max_tokens=50, max_completion_tokens=9).asked().max_tokens == 9
    assert 0 < draw(parse(top_p=0)).top_p < 1e-3


def test_penalties_and_biases():
    request = parse(presence_penalty=0.5, frequency_penalty=-1, repetition_penalty=1.2, logit_bias={"5": -100, "7": 2})
    params = draw(request)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0.5, -1, 1.2)
    assert params.logit_bias == ((5, -100), (7, 2))
    params = draw(request, penalties=False)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0, 0, 1.2)


def test_seeds_fit_the_engine_and_differ_where_none_is_given():
    for seed in (-(1 << 63), -1, (1 << 63) - 1):
        assert 0 <= draw(parse(seed=seed)).seed < 1 << 62
    assert draw(parse()).seed != draw(parse()).seed


def test_the_envelope_is_openais():
    error = ApiError(404, "no such model", code="model_not_found", param="model")
    assert error.envelope() == {
        "error": {
            "message": "no such model",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }
    assert ApiError(429, "busy").envelope()["error"]["type"] == "rate_limit_error"
