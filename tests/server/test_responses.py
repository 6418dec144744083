"""OpenAI's Responses, by its own client and on the wire."""

from __future__ import annotations

import json

import openai
import pydantic
import pytest

from leanseek.messages import Message, ToolCall
from leanseek.server.refusal import ApiError, parse_body
from leanseek.server.responses import ResponsesRequest
from leanseek.server.toolbox import Choice
from tests.server.test_anthropic import events_of
from tests.server.test_app import send

WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
CALLS = (ToolCall("", "weather", '{"city": "Köln"}'),)


def parse(**fields):
    return parse_body(ResponsesRequest, json.dumps({"input": "start 5 +3", **fields}).encode(), "input").asked()


def test_a_response(speak, serve, connect):
    engine = speak("total 8", "5 +3")
    engine.cached_tokens = 2
    response = connect(serve(engine)).responses.create(
        model="tiny", input="start 5 +3", instructions="be brief", max_output_tokens=100
    )
    assert response.output_text == "total 8"
    assert (response.status, response.model, response.object) == ("completed", "tiny", "response")
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert response.output[0].content[0].text == "5 +3"
    assert response.usage.input_tokens == len(engine.prompts[0])
    assert response.usage.input_tokens_details.cached_tokens == 2
    assert response.usage.output_tokens_details.reasoning_tokens > 0
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


def test_a_stream_makes_the_same_response(speak, serve, connect):
    client = connect(serve(speak("I look.", "which?", CALLS)))
    asked = {"model": "tiny", "input": "start", "tools": [WEATHER]}
    whole = client.responses.create(**asked)
    with client.responses.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == whole.output_text == "I look."
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    call = final.output[2]
    assert (call.name, json.loads(call.arguments), call.status) == ("weather", {"city": "Köln"}, "completed")
    assert call.call_id.startswith("call_")
    assert "".join(one.delta for one in events if one.type == "response.output_text.delta") == "I look."
    arguments = [one.delta for one in events if one.type == "response.function_call_arguments.delta"]
    assert "".join(arguments) == call.arguments
    assert [one.sequence_number for one in events] == list(range(len(events)))


def test_the_order_of_events(speak, serve):
    listener = serve(speak("so", "hm", CALLS))
    body = json.dumps({"input": "start", "tools": [WEATHER], "stream": True})
    events = events_of(send(listener, "POST", "/v1/responses", body)[2])
    kinds = [one["type"].removeprefix("response.") for one in events]
    assert kinds[:2] == ["created", "in_progress"]
    assert kinds[-1] == "completed"
    opened = [one for one in events if one["type"] == "response.output_item.added"]
    closed = [one for one in events if one["type"] == "response.output_item.done"]
    assert [one["output_index"] for one in opened] == [one["output_index"] for one in closed] == [0, 1, 2]
    assert [one["item"] for one in closed] == events[-1]["response"]["output"]
    assert len({one["response"]["id"] for one in events if "response" in one}) == 1


def test_the_parse_helper(speak, serve, connect):
    class Answer(pydantic.BaseModel):
        total: int

    engine = speak('{"total": 8}')
    parsed = connect(serve(engine)).responses.parse(model="tiny", input="start", text_format=Answer)
    assert parsed.output_parsed == Answer(total=8)
    assert engine.seen[0].grammar.kind == "json_schema"


@pytest.mark.parametrize("fields", [{"include": ["message.output_text.logprobs"]}, {"top_logprobs": 2}])
def test_log_probabilities(speak, serve, connect, fields):
    client = connect(serve(speak("größer 🙂 8", "hm")))
    asked = {"model": "tiny", "input": "start", **fields}
    part = client.responses.create(**asked).output[-1].content[0]
    assert "".join(one.token for one in part.logprobs) == part.text
    assert all(one.logprob == -0.5 for one in part.logprobs)
    assert {len(one.top_logprobs) for one in part.logprobs} == {fields.get("top_logprobs", 0)}
    events = list(client.responses.create(**asked, stream=True))
    told = [one for event in events if event.type == "response.output_text.delta" for one in event.logprobs]
    (done,) = (event for event in events if event.type == "response.output_text.done")
    assert [one.token for one in done.logprobs] == [one.token for one in part.logprobs]
    assert told and "".join(one.token for one in told) == part.text
    assert events[-1].response.output[-1].content[0].logprobs == part.logprobs


def test_without_being_asked_for_there_are_none(speak, serve, connect):
    part = connect(serve(speak("so"))).responses.create(model="tiny", input="start").output[-1].content[0]
    assert part.logprobs == []


def test_how_it_is_drawn_and_which_tools_are_allowed():
    now = {"type": "function", "name": "now", "parameters": {}, "strict": True}
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "now"}]}
    asked = parse(seed=7, stop=["."], top_k=3, temperature=0.5, tools=[WEATHER, now], tool_choice=choice)
    assert (asked.drawing.seed, asked.drawing.stop, asked.drawing.top_k) == (7, (".",), 3)
    assert asked.toolbox.choice == Choice("required", allowed=("now",))


def test_the_choice_of_tools_is_told_as_it_was_made(speak, serve, connect):
    client = connect(serve(speak("so")))
    choices = (
        ("auto", "auto"),
        ({"type": "function", "name": "weather"},) * 2,
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "weather"}]},) * 2,
    )
    for given, told in choices:
        response = client.responses.create(model="tiny", input="a", tools=[WEATHER], tool_choice=given).to_dict()
        assert response["tool_choice"] == told


@pytest.mark.parametrize(
    "item",
    [
        {"role": "robot", "content": "a"},
        {"content": "a"},
        {"type": "function_call", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "output": "a"},
        {"type": "item_reference", "id": "msg_1"},
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"role": "user", "content": [{"type": "input_image", "image_url": "https://example.com/a.png"}]},
        7,
    ],
)
def test_an_item_that_is_none(item):
    with pytest.raises(ApiError, match=r"^input\.0") as caught:
        parse(input=[item])
    assert caught.value.status == 422


def test_a_reply_that_is_cut_off_is_incomplete(speak, serve, connect):
    response = connect(serve(speak("the total", None))).responses.create(
        model="tiny", input="start", max_output_tokens=2, reasoning={"effort": "none"}
    )
    assert response.status == "incomplete"
    assert response.incomplete_details.reason == "max_output_tokens"


def test_items():
    asked = parse(
        instructions="be brief",
        input=[
            {"role": "developer", "content": "truly"},
            {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
            {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call", "call_id": "c2", "name": "now", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": "rain"},
            {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "12:00"}]},
        ],
        user_id="ann",
    )
    assert asked.messages == (
        Message("system", "be brief"),
        Message("system", "truly"),
        Message("user", "weather?"),
        Message("assistant", "I look.", "hm", (ToolCall("c1", "weather", "{}"), ToolCall("c2", "now", "{}"))),
        Message("tool", "rain", tool_call_id="c1", name="weather"),
        Message("tool", "12:00", tool_call_id="c2", name="now"),
    )
    assert (asked.scope, asked.thinks) == ("ann", True)


@pytest.mark.parametrize(
    "fields", [{"previous_response_id": "resp_1"}, {"background": True}, {"conversation": "c"}, {"n": 2}]
)
def test_what_would_need_a_store_is_refused(fields):
    with pytest.raises(ApiError) as caught:
        parse(**fields)
    assert (caught.value.status, caught.value.code) == (400, "unsupported_parameter")


def test_errors(speak, serve, connect):
    engine = speak("b")
    client = connect(serve(engine))
    with pytest.raises(openai.BadRequestError, match="nothing is stored"):
        client.responses.create(model="tiny", input="a", previous_response_id="resp_1")
    with pytest.raises(openai.UnprocessableEntityError, match="input"):
        client.responses.create(model="tiny", input=[{"role": "user", "content": [{"type": "input_image"}]}])
    engine.fail_next = RuntimeError("a secret")
    last = list(client.responses.create(model="tiny", input="a", stream=True))[-1]
    assert (last.type, last.response.status) == ("response.failed", "failed")
    assert "secret" not in last.response.error.message


def test_what_was_answered_can_be_sent_back(speak, serve, connect):
    engine = speak("I look.", "which?", CALLS)
    client = connect(serve(engine))
    asked = [{"role": "user", "content": "weather?"}]
    first = client.responses.create(model="tiny", input=asked, tools=[WEATHER])
    call = first.output[-1]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    second = client.responses.create(model="tiny", input=[*asked, *first.output, result], tools=[WEATHER])
    assert second.status == "completed"
    said = engine.tokenizer.decode(engine.prompts[1], skip_special=False)
    assert "I look." in said and "rain" in said
