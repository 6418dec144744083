from __future__ import annotations

import json

import pytest

from leanseek.messages import Message
from leanseek.server.defaults import SamplingDefaults
from leanseek.server.openai import ApiError, parse_chat_request

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
    ],
)
def test_a_wrong_field_is_422_and_named(fields, param):
    with pytest.raises(ApiError) as caught:
        parse(**fields)
    assert (caught.value.status, caught.value.code, caught.value.param) == (422, "invalid_parameter", param)
    assert str(caught.value).startswith(param)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": True, "top_logprobs": 2}, "top_logprobs"),
        ({"presence_penalty": 0.5, "thinking": {"type": "disabled"}}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"messages": [*ASK, {"role": "assistant", "content": "So", "prefix": True}]}, "messages"),
    ],
)
def test_what_is_not_served_is_refused_not_ignored(fields, param):
    with pytest.raises(ApiError) as caught:
        parse(**fields)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "unsupported_parameter", param)


def test_what_changes_nothing_is_accepted():
    request = parse(
        model="m",
        unheard_of={"a": [1]},
        user="someone",
        presence_penalty=0.5,  # in thinking mode DeepSeek ignores it
        tools=[],
        logit_bias={},
        response_format={"type": "text"},
        top_logprobs=0,
        stop=None,
        n=None,
        temperature=None,
    )
    assert request.thinks
    assert not parse(thinking={"type": "disabled"}).thinks
    assert parse(tools=[{"type": "function"}], tool_choice="none").tools is not None


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
        Message("assistant", ""),
        Message("user", "grüße 🙂"),
    ]


def test_sampling_takes_the_request_before_the_models_defaults():
    defaults = SamplingDefaults(temperature=0.6, top_p=0.95, top_k=40, min_p=0.1)
    params = parse().sampling(defaults, 100)
    assert (params.max_tokens, params.n, params.stop, params.logprobs) == (100, 1, (), None)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0.6, 0.95, 40, 0.1)
    asked = parse(temperature=0, top_p=1, top_k=-1, min_p=0, max_tokens=7, n=3, seed=5, stop="x", logprobs=True)
    params = asked.sampling(defaults, 100)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == (0, 1, 0, 0)
    assert (params.max_tokens, params.n, params.seed, params.stop, params.logprobs) == (7, 3, 5, ("x",), 0)
    greedy = SamplingDefaults(temperature=0.6, do_sample=False)
    assert parse().sampling(greedy, 100).temperature == 0


def test_sampling_limits_the_reply():
    assert parse(max_tokens=500).sampling(SamplingDefaults(), 100).max_tokens == 100
    assert parse(max_tokens=50, max_completion_tokens=9).sampling(SamplingDefaults(), 100).max_tokens == 9
    assert 0 < parse(top_p=0).sampling(SamplingDefaults(), 100).top_p < 1e-3


def test_seeds_fit_the_engine_and_differ_where_none_is_given():
    for seed in (-(1 << 63), -1, (1 << 63) - 1):
        assert 0 <= parse(seed=seed).sampling(SamplingDefaults(), 9).seed < 1 << 62
    assert parse().sampling(SamplingDefaults(), 9).seed != parse().sampling(SamplingDefaults(), 9).seed


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
