"""Anthropic's protocol, by its own client and on the wire."""

from __future__ import annotations

import json

import anthropic
import pydantic
import pytest

from leanseek.messages import Message, ToolCall, ToolSpec
from leanseek.server.anthropic import CountRequest, MessagesRequest
from leanseek.server.blocks import Blocks
from leanseek.server.refusal import ApiError, error_response, parse_body
from leanseek.server.reply import Reply, Said
from leanseek.server.usage import Usage
from leanseek.tokens.chat import ChatFormat
from tests.server.test_app import send

ASK = [{"role": "user", "content": "start 5 +3"}]
WEATHER = {
    "name": "weather",
    "description": "of a place",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALLS = (ToolCall("", "weather", '{"city": "Köln"}'), ToolCall("", "weather", '{"city": "Bonn"}'))


@pytest.fixture
def claude():
    """Return a function that gives Anthropic's own client for a server."""
    opened = []

    def make(listener, key="none", base=""):
        opened.append(anthropic.Anthropic(base_url=listener.url + base, api_key=key, max_retries=0, timeout=20))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def parse(**fields):
    body = {"messages": ASK, "max_tokens": 50, **fields}
    return parse_body(MessagesRequest, json.dumps(body).encode(), "messages").asked()


def events_of(body):
    """Return name and data of each event, and check that they agree."""
    found = []
    for event in body.decode().split("\n\n")[:-1]:
        if event.startswith(":"):
            continue
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_a_message(speak, serve, claude):
    engine = speak("total 8", "5 +3")
    engine.cached_tokens = 3
    client = claude(serve(engine))
    message = client.messages.create(model="tiny", max_tokens=100, messages=ASK)
    thinking, text = message.content
    assert (thinking.type, thinking.thinking) == ("thinking", "5 +3")
    assert (text.type, text.text) == ("text", "total 8")
    assert len(message._request_id) == 32
    assert (message.role, message.type, message.model) == ("assistant", "message", "tiny")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens == len(engine.prompts[0])
    assert message.usage.cache_read_input_tokens == 3
    assert message.usage.output_tokens > 4


@pytest.mark.parametrize("base", ["", "/anthropic"])
def test_a_stream_makes_the_same_message(speak, serve, claude, base):
    client = claude(serve(speak("I look.", "which?", CALLS)), base=base)
    asked = {"model": "claude-sonnet-5", "max_tokens": 400, "messages": ASK, "tools": [WEATHER]}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        texts = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert texts == "I look."
    assert [block.type for block in final.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert [block.input for block in final.content[2:]] == [{"city": "Köln"}, {"city": "Bonn"}]
    assert all(block.id.startswith("toolu_") for block in final.content[2:])
    assert final.stop_reason == whole.stop_reason == "tool_use"
    assert final.usage.output_tokens == whole.usage.output_tokens
    forget = {"id": "", "signature": ""}
    assert [{**a.model_dump(), **forget} for a in final.content] == [
        {**b.model_dump(), **forget} for b in whole.content
    ]


def test_the_order_of_events(speak, serve):
    listener = serve(speak("so", "hm", CALLS))
    body = json.dumps({"messages": ASK, "max_tokens": 400, "tools": [WEATHER], "stream": True})
    _, headers, text = send(listener, "POST", "/v1/messages", body)
    assert headers["content-type"].startswith("text/event-stream")
    events = events_of(text)
    kinds = [one["type"] for one in events]
    assert kinds[:2] == ["message_start", "ping"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    open_block, index = None, -1
    for one in events[2:-2]:
        if one["type"] == "content_block_start":
            assert open_block is None
            open_block, index = one["content_block"]["type"], index + 1
            assert one["index"] == index
        elif one["type"] == "content_block_stop":
            assert (open_block is not None, one["index"]) == (True, index)
            open_block = None
        else:
            assert (one["type"], one["index"]) == ("content_block_delta", index)
            kind = one["delta"]["type"]
            accepted = {"thinking": ("thinking_delta", "signature_delta"), "text": ("text_delta",)}
            assert kind in accepted.get(open_block, ("input_json_delta",))
    assert (open_block, index) == (None, 3)
    assert events[-2]["delta"]["stop_reason"] == "tool_use"
    assert events[-2]["usage"]["output_tokens"] > 0


def test_stop_sequences_and_limits(speak, serve, claude):
    client = claude(serve(speak("the total is 8", None)))
    plain = {"thinking": {"type": "disabled"}}
    message = client.messages.create(model="tiny", max_tokens=100, messages=ASK, stop_sequences=["is"], **plain)
    assert (message.content[0].text, message.stop_reason, message.stop_sequence) == (
        "the total ",
        "stop_sequence",
        "is",
    )
    message = client.messages.create(model="tiny", max_tokens=2, messages=ASK, **plain)
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 2)


def test_a_conversation_with_tools_reaches_the_model():
    history = [
        *ASK,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "x"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Köln"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]},
                {"type": "text", "text": "so?"},
            ],
        },
    ]
    asked = parse(
        messages=history,
        system=[{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}],
        tools=[WEATHER],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        metadata={"user_id": "ann"},
        temperature=0.5,
        top_k=4,
    )
    assert asked.messages == (
        Message("system", "be brief"),
        Message("user", "start 5 +3"),
        Message("assistant", "I look.", "hm", (ToolCall("t1", "weather", '{"city": "Köln"}'),)),
        Message("tool", "rain", tool_call_id="t1", name="weather"),
        Message("user", "so?"),
    )
    assert asked.toolbox.specs == (ToolSpec("weather", "of a place", WEATHER["input_schema"]),)
    assert (asked.toolbox.choice.kind, asked.toolbox.several) == ("required", False)
    assert (asked.scope, asked.drawing.temperature, asked.drawing.top_k, asked.max_tokens) == ("ann", 0.5, 4, 50)


@pytest.mark.parametrize(
    ("fields", "thinks"),
    [
        ({}, True),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
        ({"thinking": {"type": "adaptive"}}, True),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, True),
        ({"output_config": {"effort": "max"}}, True),
        ({"messages": [*ASK, {"role": "assistant", "content": "So"}]}, False),  # goes on
    ],
)
def test_thinking(fields, thinks):
    assert parse(**fields).thinks is thinks


def test_thinking_that_is_not_to_be_shown(speak, serve, claude):
    client = claude(serve(speak("total 8", "5 +3")))
    asked = {"model": "tiny", "max_tokens": 100, "messages": ASK}
    asked["thinking"] = {"type": "adaptive", "display": "omitted"}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        kinds = [event.delta.type for event in stream if event.type == "content_block_delta"]
        final = stream.get_final_message()
    assert "thinking_delta" not in kinds and kinds[0] == "signature_delta"
    for message in (whole, final):
        thinking, text = message.content
        assert (thinking.type, thinking.thinking, text.text) == ("thinking", "", "total 8")
        assert thinking.signature
        assert message.usage.output_tokens_details.thinking_tokens > 3


def test_a_format(speak, serve, claude):
    class Answer(pydantic.BaseModel):
        total: int

    engine = speak('{"total": 8}', "hm")
    parsed = claude(serve(engine)).messages.parse(model="tiny", max_tokens=90, messages=ASK, output_format=Answer)
    assert parsed.parsed_output == Answer(total=8)
    grammar = engine.seen[0].grammar
    assert (grammar.kind, grammar.after_thinking) == ("json_schema", True)
    assert json.loads(grammar.text)["properties"]["total"]["type"] == "integer"


@pytest.mark.parametrize(
    ("given", "kind", "name"),
    [
        (None, "auto", None),
        ({"type": "auto"}, "auto", None),
        ({"type": "any"}, "required", None),
        ({"type": "none"}, "none", None),
        ({"type": "tool", "name": "weather"}, "named", "weather"),
    ],
)
def test_tool_choice(given, kind, name):
    choice = parse(tools=[WEATHER], tool_choice=given).toolbox.choice
    assert (choice.kind, choice.name) == (kind, name)


@pytest.mark.parametrize("given", [{"type": "tool"}, {"type": "tool", "name": "other"}, {"type": "required"}])
def test_a_tool_choice_that_cannot_be(given):
    with pytest.raises(ApiError, match="tool_choice"):
        parse(tools=[WEATHER], tool_choice=given)


@pytest.mark.parametrize(
    "block",
    [
        {"type": "text"},
        {"type": "thinking", "signature": "x"},
        {"type": "tool_use", "id": "t", "input": {}},
        {"type": "tool_use", "id": "t", "name": "weather", "input": "{}"},
        {"type": "tool_result", "content": "rain"},
        {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image", "source": {}}]},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "a"}},
        {"type": "image", "source": {}},
        "text",
    ],
)
def test_a_block_that_is_none(block):
    with pytest.raises(ApiError, match=r"^messages\.0\.content\.0"):
        parse(messages=[{"role": "user", "content": [block]}])


def test_whole_history_of_blocks_is_taken():
    blocks = [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = parse(messages=[*ASK, {"role": "assistant", "content": blocks}, *ASK])
    assert asked.messages[1] == Message("assistant", "ab")


def test_a_reply_that_the_context_or_the_server_ends(speak, serve, claude):
    engine = speak("the total is 8 " * 20, None, context_tokens=60)
    plain = {"thinking": {"type": "disabled"}, "messages": ASK}
    message = claude(serve(engine)).messages.create(model="tiny", max_tokens=1000, **plain)
    assert message.stop_reason == "model_context_window_exceeded"
    reply = Reply(engine.chat, (), thinking=False)
    reply.end("insufficient_system_resource")
    assert Blocks("tiny").whole([Said()], [reply], Usage(3))["stop_reason"] == "pause_turn"


def test_the_last_message_is_gone_on_with(speak, serve, tiny_tokenizer):
    engine = speak("b", None)
    body = json.dumps({"messages": [*ASK, {"role": "assistant", "content": "So"}], "max_tokens": 5})
    assert send(serve(engine), "POST", "/v1/messages", body)[0] == 200
    assert tiny_tokenizer.decode(engine.prompts[0], skip_special=False).endswith("</think>So")


def test_counting(speak, serve, claude, tiny_tokenizer):
    client = claude(serve(speak("b")))
    counted = client.messages.count_tokens(model="tiny", messages=ASK, system="be brief", tools=[WEATHER])
    spec = ToolSpec("weather", "of a place", WEATHER["input_schema"])
    prompt = ChatFormat(tiny_tokenizer).prompt(
        [Message("system", "be brief"), Message("user", ASK[0]["content"])], tools=[spec]
    )
    assert counted.input_tokens == len(prompt)
    assert CountRequest.model_fields.keys() < MessagesRequest.model_fields.keys()


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"max_tokens": None}, anthropic.BadRequestError),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, anthropic.BadRequestError),
        ({"model": "gpt"}, anthropic.NotFoundError),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, anthropic.BadRequestError),
    ],
)
def test_errors_as_its_client_knows_them(speak, serve, claude, fields, error):
    client = claude(serve(speak("b")))
    with pytest.raises(error) as caught:
        client.messages.create(**{"model": "tiny", "max_tokens": 5, "messages": ASK, **fields})
    assert caught.value.body["type"] == "error"
    assert len(caught.value.request_id) == 32
    assert set(caught.value.body["error"]) == {"type", "message"}


@pytest.mark.parametrize(
    ("status", "kind", "openais"),
    [
        (400, "invalid_request_error", "invalid_request_error"),
        (401, "authentication_error", "authentication_error"),
        (402, "billing_error", "insufficient_balance_error"),
        (403, "permission_error", "permission_error"),
        (404, "not_found_error", "invalid_request_error"),
        (408, "timeout_error", "invalid_request_error"),
        (413, "request_too_large", "invalid_request_error"),
        (422, "invalid_request_error", "invalid_request_error"),
        (429, "rate_limit_error", "rate_limit_error"),
        (500, "api_error", "server_error"),
        (503, "overloaded_error", "server_error"),
    ],
)
def test_every_status_has_its_name_in_both_protocols(status, kind, openais):
    error = ApiError(status, "no", code="it", param="x")
    for path in ("/v1/messages", "/v1/messages/count_tokens", "/anthropic/v1/messages"):
        answer = error_response(error, path)
        assert answer.status_code == (400 if status == 422 else status)
        assert json.loads(answer.body) == {"type": "error", "error": {"type": kind, "message": "no"}}
    answer = error_response(error, "/v1/chat/completions")
    assert answer.status_code == status
    assert json.loads(answer.body)["error"] == {"message": "no", "type": openais, "param": "x", "code": "it"}


def test_keys(speak, serve, claude):
    listener = serve(speak("b"), api_keys=("alpha",))
    with pytest.raises(anthropic.AuthenticationError):
        claude(listener, "beta").messages.create(model="tiny", max_tokens=5, messages=ASK)
    assert claude(listener, "alpha").messages.create(model="tiny", max_tokens=5, messages=ASK).id.startswith("msg_")


def test_a_failure_within_a_stream(speak, serve, claude):
    engine = speak("b")
    client = claude(serve(engine))
    engine.fail_next = RuntimeError("a secret")
    with (
        pytest.raises(anthropic.APIError, match="RuntimeError"),
        client.messages.stream(model="tiny", max_tokens=5, messages=ASK) as stream,
    ):
        stream.get_final_message()


def test_a_call_that_has_no_result():
    call = {"type": "tool_use", "id": "t", "name": "weather", "input": {}}
    with pytest.raises(ApiError, match="tool_result"):
        parse(messages=[*ASK, {"role": "assistant", "content": [call]}])


def test_what_was_answered_can_be_sent_back(speak, serve, claude):
    engine = speak("I look.", "which?", CALLS[:1])
    client = claude(serve(engine))
    asked = {"model": "tiny", "max_tokens": 300, "tools": [WEATHER]}
    first = client.messages.create(**asked, messages=ASK)
    result = {"type": "tool_result", "tool_use_id": first.content[-1].id, "content": "rain"}
    history = [*ASK, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    assert client.messages.create(**asked, messages=history).stop_reason == "tool_use"
    said = engine.tokenizer.decode(engine.prompts[1], skip_special=False)
    assert "I look." in said and "rain" in said


def test_models(speak, serve, claude):
    listener = serve(speak("b"))
    for base in ("", "/anthropic"):
        listed = claude(listener, base=base).models.list()
        assert listed.data[0].id == "tiny"
        one = claude(listener, base=base).models.retrieve("tiny")
        assert (one.type, one.id) == ("model", "tiny")
        assert not listed.has_more
