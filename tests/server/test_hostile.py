"""Bodies that nobody means: whatever they are, the answer is no 5xx, and the server goes on."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.test_app import ASK, send

PATHS = {
    "/v1/chat/completions": {"messages": ASK, "max_tokens": 2},
    "/v1/completions": {"prompt": "a", "max_tokens": 2},
    "/v1/responses": {"input": "a", "max_output_tokens": 2},
    "/v1/messages": {"messages": ASK, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": ASK},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [5]},
}
FIELDS = sorted(
    set(
        """messages prompt input tokens model thinking reasoning_effort max_tokens max_completion_tokens temperature
    top_p top_k min_p seed n stop stream stream_options logprobs top_logprobs presence_penalty frequency_penalty
    repetition_penalty logit_bias tools tool_choice parallel_tool_calls response_format user_id user suffix echo best_of
    instructions reasoning text max_output_tokens previous_response_id metadata system stop_sequences output_config
    add_special_tokens include safety_identifier container context_management mcp_servers""".split()
    )
)
WORDS = st.sampled_from(
    """user assistant tool system text image_url function auto none required json_object json_schema enabled disabled
    message reasoning function_call function_call_output tool_use tool_result thinking any high""".split()
)
KEYS = st.sampled_from(
    """role content type text name parameters function arguments id tool_calls tool_call_id schema json_schema format
    effort input_schema input output call_id summary prefix reasoning_content properties required items enum anyOf $ref
    pattern minLength strict tool_use_id include_usage allowed_tools mode tools display""".split()
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.integers(-2, 3)
    | st.floats(allow_nan=True)
    | st.text(max_size=12)
    | WORDS
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=4), inner, max_size=5),
    max_leaves=12,
)


@pytest.mark.parametrize("path", PATHS)
def test_any_fields(tiny_server, path):
    @settings(max_examples=60, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4))
    def ask(fields):
        body = json.dumps({**PATHS[path], **fields})
        status, _, text = send(tiny_server, "POST", path, body)
        assert 200 <= status < 500, (status, text, body)

    ask()
    assert tiny_server.bridge.active == 0
    tiny_server.bridge.engine.check_integrity()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"a"',
        b"\xff\xfe",
        b"[" * 5000,
        b'{"a":' * 5000,
        b'{"messages": [{"role": "user"}]',
        b"NaN",
    ],
)
def test_what_is_no_request_at_all(tiny_server, path, body):
    status, _, text = send(tiny_server, "POST", path, body)
    assert status in (400, 422)
    assert "error" in json.loads(text)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"type": "string", "pattern": "(a+)+$" * 20},
        {"type": "string", "pattern": "("},
        {"type": ["nothing"]},
        {"properties": []},
        {"required": 5},
        {"enum": []},
        {"minLength": -1, "maxLength": 1 << 60, "type": "string"},
        {"anyOf": [{"type": "object", "properties": {"x" * 9: {}}}] * 50},
    ],
)
def test_schemas_that_nobody_means(tiny_server, schema):
    for fields in (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}]},
    ):
        body = json.dumps({"messages": ASK, "max_tokens": 2, "thinking": {"type": "disabled"}, **fields})
        status, _, text = send(tiny_server, "POST", "/v1/chat/completions", body)
        assert 200 <= status < 500, text
        assert send(tiny_server, "GET", "/ready")[0] == 200


def test_json_that_is_nested_deeply(tiny_server):
    schema = {"type": "object"}
    for _ in range(100):
        schema = {"type": "object", "properties": {"a": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    body = json.dumps({"messages": ASK, "tools": [tool]})
    status, _, text = send(tiny_server, "POST", "/v1/chat/completions", body)
    assert status in (400, 422)
    assert json.loads(text)["error"]["message"]


def test_numbers_that_break_arithmetic_are_refused_and_whole_ones_may_have_a_point(tiny_server):
    for fields, status in (({"repetition_penalty": 5e-324}, 422), ({"max_tokens": 2.0, "seed": 1.0, "n": 1.0}, 200)):
        body = json.dumps({"messages": ASK, "max_tokens": 2, **fields})
        assert send(tiny_server, "POST", "/v1/chat/completions", body)[0] == status
    assert send(tiny_server, "POST", "/v1/chat/completions", json.dumps({"messages": ASK, "max_tokens": 1.5}))[0] == 422
