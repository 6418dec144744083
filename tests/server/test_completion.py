from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from leanseek.server.completion import Completion, model_object
from leanseek.server.jsontext import to_json
from leanseek.server.refusal import ApiError
from leanseek.server.reply import Said, Scored
from leanseek.server.usage import Usage
from leanseek.tokens.chat import ToolCallDelta


def begin(**options) -> Completion:
    return Completion.begin("tiny", "fp_1", **options)


def ended(*reasons):
    return [SimpleNamespace(finish_reason=reason) for reason in reasons]


def chunks(*streams):
    frames = [one for stream in streams for one in stream]
    return [json.loads(one.removeprefix(b"data: ")) for one in frames if one != b"data: [DONE]\n\n"]


def test_whole():
    usage = Usage(5, 7, 3, cached_tokens=2)
    answer = begin().whole([Said("because", "yes"), Said("hm", "no")], ended("stop", "length"), usage)
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["model"], answer["system_fingerprint"]) == ("tiny", "fp_1")
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "length"]
    message = answer["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "yes", "reasoning_content": "because", "refusal": None}
    assert answer["usage"]["total_tokens"] == 12
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3
    assert (answer["usage"]["prompt_cache_hit_tokens"], answer["usage"]["prompt_cache_miss_tokens"]) == (2, 3)


def test_without_thinking_there_is_no_reasoning_content():
    answer = begin(thinks=False).whole([Said("", "yes")], ended("stop"), Usage(1, 1))
    assert "reasoning_content" not in answer["choices"][0]["message"]


def test_tool_calls():
    said = Said(
        "",
        "",
        tool_calls=[ToolCallDelta(0, "c0", "f"), ToolCallDelta(0, arguments='{"a"'), ToolCallDelta(1, "c1", "g")],
    )
    said.tool_calls.append(ToolCallDelta(0, arguments=": 1}"))
    choice = begin().whole([said], ended("tool_calls"), Usage(1, 1))["choices"][0]
    assert choice["message"]["content"] is None
    calls = choice["message"]["tool_calls"]
    assert calls[0] == {"id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    assert calls[1]["id"] == "c1"
    (chunk,) = chunks(begin().piece(0, said))
    first, second = chunk["choices"][0]["delta"]["tool_calls"][:2]
    assert first == {"index": 0, "id": "c0", "type": "function", "function": {"name": "f", "arguments": ""}}
    assert second == {"index": 0, "function": {"arguments": '{"a"'}}


def test_chunks():
    answer = begin(with_usage=True)
    found = chunks(
        answer.opening(Usage(1)),
        answer.piece(0, Said("because")),
        answer.piece(0, Said("", "yes")),
        answer.ending(0, ended("stop")[0]),
        answer.closing([], Usage(1, 2, 1)),
    )
    assert {chunk["id"] for chunk in found} == {answer.completion_id}
    assert {chunk["created"] for chunk in found} == {answer.created}
    assert [chunk["choices"][0]["delta"] for chunk in found[:4]] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "because"},
        {"content": "yes"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in found[:4]] == [None, None, None, "stop"]
    assert [chunk["usage"] for chunk in found[:4]] == [None] * 4
    assert found[4]["choices"] == []
    assert found[4]["usage"]["total_tokens"] == 3
    assert "usage" not in chunks(begin().opening(Usage(1)))[0]
    assert chunks(begin().closing([], Usage(1))) == []


def test_each_piece_tells_what_was_taken_until_then_where_that_is_wanted():
    taken = iter([Usage(1, 1, joules=0.5, usd=0.25), Usage(1, 2, joules=2.0, usd=0.5)])
    answer = begin(with_usage=True, live_usage=True)
    found = chunks(
        answer.opening(Usage(1)),
        answer.piece(0, Said("", "yes"), lambda: next(taken)),
        answer.piece(0, Said(), lambda: next(taken)),  # no chunk, and nothing is counted for it
        answer.piece(0, Said("", "no"), lambda: next(taken)),
        answer.ending(0, ended("stop")[0]),
    )
    told = [one["usage"] and (one["usage"]["completion_tokens"], one["usage"]["joules"]) for one in found]
    assert told == [None, (1, 0.5), (2, 2.0), None]
    assert found[2]["usage"]["usd"] == 0.5
    (plain,) = chunks(begin(with_usage=True).piece(0, Said("", "yes"), lambda: Usage(1)))
    assert plain["usage"] is None


def test_a_piece_without_text_is_no_chunk():
    assert not list(begin().piece(0, Said()))
    assert not list(begin().piece(0, Said(content_logprobs=[Scored("", -1.0)])))
    assert list(begin(with_logprobs=True).piece(0, Said(content_logprobs=[Scored("", -1.0)])))


def test_logprobs():
    said = Said("h", "é", [Scored("h", -0.25)], [Scored("é", float("-inf"), 7, ((5, -0.5), (6, -1.5)))])
    pieces = {5: b"ab", 6: b"\xc3"}
    (chunk,) = chunks(begin(with_logprobs=True, bytes_of=pieces.get).piece(0, said))
    logprobs = chunk["choices"][0]["logprobs"]
    (entry,) = logprobs["content"]
    assert (entry["token"], entry["logprob"], entry["bytes"]) == ("é", -9999.0, [195, 169])
    assert entry["top_logprobs"] == [
        {"token": "ab", "logprob": -0.5, "bytes": [97, 98]},
        {"token": "�", "logprob": -1.5, "bytes": [195]},
    ]
    assert logprobs["reasoning_content"][0]["token"] == "h"
    assert chunks(begin().piece(0, said))[0]["choices"][0]["logprobs"] is None


def test_a_failure_in_a_stream_is_an_error_event():
    assert chunks(begin().failure(ApiError(500, "broken")))[0]["error"]["message"] == "broken"


@pytest.mark.parametrize(("joules", "usd"), [(None, None), (2.5, None), (2.5, 0.125)])
def test_costs_are_told_where_they_are_counted(joules, usd):
    usage = Usage(1, 2, joules=joules, meter="estimated:x", usd=usd)
    for told in (usage.openai(), usage.anthropic(), usage.responses()):
        assert told.get("joules") == joules
        assert told.get("usd") == usd
        assert ("joules_meter" in told) == (joules is not None)


def test_model_object():
    assert model_object("tiny", 5, None) == {
        "id": "tiny",
        "object": "model",
        "created": 5,
        "owned_by": "leanseek",
        "context_length": None,
    }


def test_json_is_utf8_whatever_the_text():
    assert to_json({"a": "é🙂"}) == '{"a":"é🙂"}'.encode()
    assert json.loads(to_json("x\udc80")) == "x\udc80"
