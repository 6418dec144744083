"""Chat requests in full, by OpenAI's own client and on the wire: tools, forms, prefixes, counts."""

from __future__ import annotations

import json

import pydantic
import pytest

from leanseek.engine.engine import Engine
from leanseek.engine.request import Event, Grammar, SamplingParams
from leanseek.messages import Message, ToolCall, ToolSpec
from leanseek.server.bill import Bill
from leanseek.server.reply import Reply, Said
from leanseek.tokens.chat import ChatFormat
from tests.server.invariants import check_chat_stream, events_of
from tests.server.test_app import ASK, send

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a place",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALLS = (ToolCall("", "weather", '{"city": "Köln"}'), ToolCall("", "now", "{}"))
NOW = {"type": "function", "function": {"name": "now"}}


def post(listener, path="/v1/chat/completions", **fields):
    status, _, body = send(listener, "POST", path, json.dumps({"messages": ASK, **fields}))
    return status, body


def test_tool_calls_whole_and_streamed(speak, serve, connect):
    listener = serve(speak("I look.", "which?", CALLS))
    client = connect(listener)
    choice = client.chat.completions.create(model="tiny", messages=ASK, tools=[WEATHER, NOW]).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look."
    assert choice.message.reasoning_content == "which?"
    found = [(call.function.name, json.loads(call.function.arguments)) for call in choice.message.tool_calls]
    assert found == [("weather", {"city": "Köln"}), ("now", {})]
    ids = [call.id for call in choice.message.tool_calls]
    assert len(set(ids)) == 2 and all(one.startswith("call_") for one in ids)
    _, body = post(listener, tools=[WEATHER, NOW], stream=True, n=2, stream_options={"include_usage": True})
    for message in check_chat_stream(body, n=2, usage=True):
        assert [(call["name"], json.loads(call["arguments"])) for call in message["tool_calls"]] == found
        assert (message["content"], message["finish_reason"]) == ("I look.", "tool_calls")


def test_arguments_are_streamed_as_they_come(speak, serve):
    listener = serve(speak("", None, [ToolCall("", "weather", '{"city": "a b c d e f"}')]))
    _, body = post(listener, tools=[WEATHER], stream=True, thinking={"type": "disabled"})
    (message,) = check_chat_stream(body)
    assert json.loads(message["tool_calls"][0]["arguments"]) == {"city": "a b c d e f"}
    assert body.count(b'"arguments"') > 4


def test_the_openai_clients_stream_helper_puts_calls_together(speak, serve, connect):
    client = connect(serve(speak("", "hm", CALLS[:1])))
    with client.chat.completions.stream(model="tiny", messages=ASK, tools=[WEATHER]) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert json.loads(final.message.tool_calls[0].function.arguments) == {"city": "Köln"}


def test_the_openai_clients_parse_helper(speak, serve, connect):
    class Answer(pydantic.BaseModel):
        total: int

    engine = speak('{"total": 8}', "hm")
    client = connect(serve(engine))
    parsed = client.chat.completions.parse(model="tiny", messages=ASK, response_format=Answer).choices[0].message.parsed
    assert parsed == Answer(total=8)
    grammar = engine.seen[0].grammar
    assert (grammar.kind, grammar.after_thinking) == ("json_schema", True)
    assert json.loads(grammar.text)["properties"] == {"total": {"title": "Total", "type": "integer"}}


@pytest.mark.parametrize(
    ("fields", "kind", "after_thinking"),
    [
        ({}, None, None),
        ({"response_format": {"type": "json_object"}}, "json_object", True),
        ({"response_format": {"type": "json_object"}, "thinking": {"type": "disabled"}}, "json_object", False),
        ({"tools": [NOW]}, "tools", True),
        ({"tools": [NOW], "tool_choice": "none"}, None, None),
        ({"tools": [NOW], "tool_choice": "none", "response_format": {"type": "json_object"}}, "json_object", True),
        ({"tools": [NOW], "response_format": {"type": "json_object"}}, "lark", True),
        ({"tools": [NOW], "guided_regex": "a/b"}, "lark", True),
        ({"tools": [NOW], "tool_choice": "required"}, "lark", True),
        ({"tools": [NOW], "tool_choice": "required", "thinking": {"type": "disabled"}}, "lark", False),
        ({"tools": [NOW], "tool_choice": {"type": "function", "function": {"name": "now"}}}, "lark", True),
    ],
)
def test_what_the_engine_is_asked_to_hold_the_reply_to(speak, serve, fields, kind, after_thinking):
    engine = speak("b")
    status, _ = post(serve(engine), **fields)
    assert status == 200
    grammar = engine.seen[0].grammar
    assert (grammar and grammar.kind, grammar and grammar.after_thinking) == (kind, after_thinking)


def test_tools_and_their_results_reach_the_model(speak, serve, tiny_tokenizer):
    engine = speak("b")
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    history = [
        *ASK,
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
    ]
    assert post(serve(engine), messages=history, tools=[NOW])[0] == 200
    expected = ChatFormat(tiny_tokenizer).prompt(
        [
            Message("user", ASK[0]["content"]),
            Message("assistant", "", "hm", (ToolCall("c1", "now", "{}"),)),
            Message("tool", "12:00", tool_call_id="c1", name="now"),
        ],
        tools=[ToolSpec("now")],
    )
    assert engine.prompts[0] == expected


def test_what_looks_like_a_call_is_text_where_there_are_no_tools(speak, serve):
    status, body = post(serve(speak("so", "hm", CALLS[1:])))
    message = json.loads(body)["choices"][0]
    assert (status, message["finish_reason"]) == (200, "stop")
    assert "tool_calls" not in message["message"]
    assert message["message"]["content"] == "sonow{}"


def test_top_logprobs(speak, serve, connect, tiny_tokenizer):
    client = connect(serve(speak("total 8", None)))
    asked = {"model": "tiny", "messages": ASK, "logprobs": True, "extra_body": {"thinking": {"type": "disabled"}}}
    entries = client.chat.completions.create(**asked, top_logprobs=2).choices[0].logprobs.content
    assert "".join(one.token for one in entries) == "total 8"
    assert all([top.logprob for top in one.top_logprobs] == [-0.5, -1.5] for one in entries)
    assert all(one.top_logprobs[0].token == one.token for one in entries)
    entries = client.chat.completions.create(**asked).choices[0].logprobs.content
    assert all(one.top_logprobs == [] for one in entries)


def test_log_probabilities_beside_calls(speak, serve):
    listener = serve(speak("I look.", "which?", CALLS))
    asked = {"tools": [WEATHER, NOW], "logprobs": True, "top_logprobs": 2}
    whole = json.loads(post(listener, **asked)[1])["choices"][0]
    told = whole["logprobs"]
    assert "".join(one["token"] for one in told["content"]) == whole["message"]["content"] == "I look."
    thought = "".join(one["token"] for one in told["reasoning_content"])
    assert thought == whole["message"]["reasoning_content"] == "which?"
    _, body = post(listener, **asked, stream=True, n=3)
    for message in check_chat_stream(body, n=3):
        assert [one["token"] for one in message["logprobs"]] == [one["token"] for one in told["content"]]
        assert all(len(one["top_logprobs"]) == 2 for one in message["logprobs"])
        assert len(message["tool_calls"]) == 2


def test_real_top_logprobs(client):
    asked = {"model": "tiny", "messages": ASK, "max_tokens": 8, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    choice = client.chat.completions.create(**asked, extra_body={"thinking": {"type": "disabled"}}).choices[0]
    for one in choice.logprobs.content:
        assert len(one.top_logprobs) == 3
        assert one.logprob == pytest.approx(one.top_logprobs[0].logprob, abs=1e-5)


def test_penalties_and_biases_reach_the_engine(speak, serve):
    engine = speak("b")
    listener = serve(engine)
    fields = {"presence_penalty": 1, "frequency_penalty": 0.5, "logit_bias": {"5": -100}}
    post(listener, **fields, thinking={"type": "disabled"})
    post(listener, **fields)
    told, thinking = engine.seen
    assert (told.presence_penalty, told.frequency_penalty, told.logit_bias) == (1, 0.5, ((5, -100),))
    assert (thinking.presence_penalty, thinking.frequency_penalty) == (0, 0)  # as DeepSeek
    assert post(listener, logit_bias={"99999": 1})[0] == 422


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/beta/chat/completions"])
def test_going_on_with_a_message(script, serve, tiny_tokenizer, path):
    engine = script("ought", " 8")
    listener = serve(engine)
    prefix = {"role": "assistant", "content": "total", "prefix": True}
    assert post(listener, path, messages=[*ASK, prefix])[0] == 200
    text = tiny_tokenizer.decode(engine.prompts[-1], skip_special=False)
    assert text.endswith("<｜Assistant｜></think>total")
    assert post(listener, path, messages=[*ASK, {**prefix, "reasoning_content": "5+3"}])[0] == 200
    assert tiny_tokenizer.decode(engine.prompts[-1], skip_special=False).endswith("<think>\n5+3\n</think>total")
    _, body = post(listener, path, messages=[*ASK, {**prefix, "content": "", "reasoning_content": "th"}])
    assert tiny_tokenizer.decode(engine.prompts[-1], skip_special=False).endswith("<think>\nth")
    message = json.loads(body)["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("ought", " 8")  # only what is new


def test_scopes(speak, serve):
    engine = speak("b")
    listener = serve(engine)
    post(listener, user_id="ann-1")
    post(listener, user="bob@example.com")
    post(listener)
    assert engine.scopes == ["ann-1", "bob@example.com", ""]
    assert post(listener, user_id="not so")[0] == 422


def test_counts_of_the_cache(speak, serve, connect):
    engine = speak("b")
    engine.cached_tokens = 4
    usage = connect(serve(engine)).chat.completions.create(model="tiny", messages=ASK, n=2).usage
    assert usage.prompt_tokens == len(engine.prompts[0])
    assert usage.prompt_cache_hit_tokens == usage.prompt_tokens_details.cached_tokens == 4
    assert usage.prompt_cache_miss_tokens == usage.prompt_tokens - 4


class FakeMeter:
    """Ten joules a reading."""

    meter = "estimated:fake"
    read = 0

    def start(self):
        pass

    def read_joules(self):
        self.read += 1
        return 10.0 * self.read

    def stop(self):
        pass


def test_joules_and_money(speak, serve):
    engine = speak("b")
    listener = serve(engine, bill=Bill(FakeMeter(), usd_per_hour=3600.0))
    usage = json.loads(post(listener)[1])["usage"]
    assert usage["joules"] == pytest.approx(10.0 * usage["completion_tokens"])
    assert usage["joules_meter"] == "estimated:fake"
    assert 0 < usage["usd"] < 10
    assert "joules" not in json.loads(post(serve(engine))[1])["usage"]
    options = {"include_usage": True, "continuous_usage_stats": True}
    for path, extra in (("/v1/chat/completions", {}), ("/v1/completions", {"prompt": "a", "max_tokens": 4})):
        body = json.dumps({"messages": ASK, "stream": True, "stream_options": options, **extra})
        events = events_of(send(listener, "POST", path, body)[2])
        with_text = [one for one in events[:-2] if one["usage"] is not None]
        spent = [one["usage"]["joules"] for one in with_text]
        assert spent == sorted(spent) and 0 < spent[0] <= spent[-1] <= events[-2]["usage"]["joules"]
        counts = [one["usage"]["completion_tokens"] for one in with_text]
        assert counts == sorted(set(counts)) and 0 < counts[0] < counts[-1] <= events[-2]["usage"]["completion_tokens"]
        assert events[-2]["choices"] == [] and all(one["choices"] for one in with_text)


def test_names(speak, serve):
    listener = serve(speak("b"))
    for name in ("tiny", "deepseek-flash", "deepseek-v4-pro", "deepseek-reasoner"):
        status, body = post(listener, model=name)
        assert (status, json.loads(body)["model"]) == (200, name)
    message = json.loads(post(listener, model="deepseek-chat")[1])["choices"][0]["message"]
    assert "reasoning_content" not in message


def test_a_grammar_that_cannot_be_is_the_clients_fault(tiny_server):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    status, body = post(tiny_server, response_format=form, max_tokens=4)
    assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_grammar")
    status, body = post(tiny_server, response_format=form, max_tokens=4, stream=True)
    assert status == 400


def test_a_real_reply_is_held_to_its_form(tiny_server):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    status, body = post(
        tiny_server, response_format=form, max_tokens=60, seed=1, thinking={"type": "disabled"}, stream=True
    )
    assert status == 200
    (message,) = check_chat_stream(body)
    assert set(json.loads(message["content"])) == {"a"}


def test_a_real_call_that_is_forced(make_model, tiny_tokenizer, serve):
    listener = serve(Engine(make_model(max_position_embeddings=512), tiny_tokenizer, max_batch=2))
    flag = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    tool = {"type": "function", "function": {"name": "f", "parameters": flag, "strict": True}}
    choice = {"type": "function", "function": {"name": "f"}}
    status, body = post(
        listener, tools=[tool], tool_choice=choice, max_tokens=300, seed=1, thinking={"type": "disabled"}, stream=True
    )
    assert status == 200
    (message,) = check_chat_stream(body)
    (call,) = message["tool_calls"]
    assert (call["name"], message["finish_reason"]) == ("f", "tool_calls")
    assert isinstance(json.loads(call["arguments"])["on"], bool)


def test_a_form_beside_tools(speak, serve, connect):
    class Answer(pydantic.BaseModel):
        total: int

    engine = speak('{"total": 8}', "hm")
    parsed = connect(serve(engine)).chat.completions.parse(
        model="tiny", messages=ASK, response_format=Answer, tools=[{**NOW, "function": {"name": "now", "strict": True}}]
    )
    assert parsed.choices[0].message.parsed == Answer(total=8)
    assert "call_0" in engine.seen[0].grammar.text and '"total"' in engine.seen[0].grammar.text


def test_tools_that_are_shown_and_may_not_be_called(speak, serve):
    engine = speak("b")
    allowed = {"mode": "auto", "tools": [NOW]}
    listener = serve(engine)
    for choice in ("auto", {"type": "allowed_tools", "allowed_tools": allowed}):
        assert post(listener, tools=[WEATHER, NOW], tool_choice=choice)[0] == 200
    assert engine.prompts[0] == engine.prompts[1]
    assert ["weather" in params.grammar.text for params in engine.seen] == [True, False]


def test_a_grammar_of_several_rules_cannot_stand_beside_tools(speak, serve):
    status, body = post(serve(speak("b")), tools=[NOW], guided_grammar='start: "a"')
    assert (status, json.loads(body)["error"]["code"]) == (400, "invalid_grammar")
    assert "regex" in json.loads(body)["error"]["message"]


def test_the_grammar_of_tools_is_the_chat_formats(speak, serve):
    engine = speak("b")
    post(serve(engine), tools=[NOW])
    assert isinstance(engine.seen[0].grammar, Grammar)
    assert engine.seen[0].grammar.marker


def test_tokens_that_end_a_reply(tiny_server, tiny_model, tiny_tokenizer):
    engine = Engine(tiny_model, tiny_tokenizer, max_batch=1)
    prompts = engine.chat.prompt([Message(**ASK[0])], thinking=False), engine.ids("start 5")
    fields = {"messages": ASK, "max_tokens": 24, "temperature": 0, "thinking": {"type": "disabled"}, "ignore_eos": True}
    params = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
    for path, said in zip(("/v1/chat/completions", "/v1/completions"), engine.generate(prompts, params), strict=True):
        body = {**fields, "prompt": "start 5"}
        whole = json.loads(send(tiny_server, "POST", path, json.dumps(body))[2])
        assert (whole["usage"]["completion_tokens"], whole["choices"][0]["finish_reason"]) == (24, "length")
        ends = said.token_ids[9]
        cut = json.loads(send(tiny_server, "POST", path, json.dumps(body | {"stop_token_ids": [ends, 1 << 30]}))[2])
        assert cut["choices"][0]["finish_reason"] == "stop"
        assert cut["usage"]["completion_tokens"] == said.token_ids.index(ends) + 1
        assert send(tiny_server, "POST", path, json.dumps(body | {"stop_token_ids": [-1]}))[0] == 422
        assert send(tiny_server, "POST", path, json.dumps(body | {"stop_token_ids": None}))[0] == 200


def test_a_reply_goes_on_past_its_end(speak, serve, tiny_tokenizer):
    engine = speak("42")
    listener = serve(engine)
    body = {"messages": ASK, "ignore_eos": True, "max_tokens": 7, "thinking": {"type": "disabled"}}
    send(listener, "POST", "/v1/chat/completions", json.dumps(body))
    assert engine.seen[-1].ignore_eos
    reply = Reply(engine.chat, (), thinking=False, past_end=True)
    ids = [*tiny_tokenizer.encode("total"), tiny_tokenizer.eos_id, *tiny_tokenizer.encode(" of")]
    said = Said.joined([reply.push(Event("r", 0, token, -1.0)) for token in ids])
    assert said.content == "total of"


def test_what_vllms_clients_say(script, serve):
    engine = script("a", "b")
    listener = serve(engine)

    def ask(**fields):
        status, _, text = send(listener, "POST", "/v1/chat/completions", json.dumps({"messages": ASK, **fields}))
        assert status == 200, text
        return engine.prompts[-1]

    think, no_think = ask(), ask(thinking={"type": "disabled"})
    for name in ("enable_thinking", "thinking"):
        assert ask(chat_template_kwargs={name: False}) == no_think
        assert ask(chat_template_kwargs={name: True}) == think
    begun = [*ASK, {"role": "assistant", "content": "It is"}]
    assert ask(messages=begun, continue_final_message=True) == ask(messages=[*ASK, begun[-1] | {"prefix": True}])
    ask(cache_salt="one")
    ask(cache_salt="one", user_id="two")
    assert engine.scopes[-2:] == ["one", "two"]
    ask(top_k=3, min_p=0.2, repetition_penalty=1.5, top_p=0.5)
    seen = engine.seen[-1]
    assert (seen.top_k, seen.min_p, seen.repetition_penalty, seen.top_p) == (3, 0.2, 1.5, 0.5)
