from __future__ import annotations

import json

from leanseek.server.completion import Completion, count_usage, model_object, to_json
from leanseek.server.openai import parse_chat_request
from leanseek.server.reply import Said


def begin(**fields) -> Completion:
    body = {"messages": [{"role": "user", "content": "hello"}], **fields}
    return Completion.begin(parse_chat_request(json.dumps(body).encode()), "tiny", "fp_1")


def test_whole():
    usage = count_usage(5, 7, 3)
    answer = begin().whole([Said("because", "yes"), Said("hm", "no")], ["stop", "length"], usage)
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert (answer["model"], answer["system_fingerprint"]) == ("tiny", "fp_1")
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert [choice["finish_reason"] for choice in answer["choices"]] == ["stop", "length"]
    message = answer["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "yes", "reasoning_content": "because", "refusal": None}
    assert answer["usage"]["total_tokens"] == 12
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3
    assert answer["usage"]["prompt_cache_hit_tokens"] + answer["usage"]["prompt_cache_miss_tokens"] == 5


def test_without_thinking_there_is_no_reasoning_content():
    answer = begin(thinking={"type": "disabled"}).whole([Said("", "yes")], ["stop"], count_usage(1, 1, 0))
    assert "reasoning_content" not in answer["choices"][0]["message"]


def test_chunks():
    answer = begin(stream=True, stream_options={"include_usage": True})
    chunks = [
        answer.opening(0),
        answer.piece(0, Said("because")),
        answer.piece(0, Said("", "yes")),
        answer.closing(0, "stop"),
        answer.usage(count_usage(1, 2, 1)),
    ]
    assert {chunk["id"] for chunk in chunks} == {answer.completion_id}
    assert {chunk["created"] for chunk in chunks} == {answer.created}
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:4]] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "because"},
        {"content": "yes"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:4]] == [None, None, None, "stop"]
    assert [chunk["usage"] for chunk in chunks[:4]] == [None] * 4
    assert chunks[4]["choices"] == []
    assert chunks[4]["usage"]["total_tokens"] == 3
    assert "usage" not in begin().opening(0)


def test_a_piece_without_text_is_no_chunk():
    assert begin().piece(0, Said()) is None
    assert begin().piece(0, Said(content_logprobs=[("", -1.0)])) is None
    assert begin(logprobs=True).piece(0, Said(content_logprobs=[("", -1.0)])) is not None


def test_logprobs():
    said = Said("h", "é", [("h", -0.25)], [("é", float("-inf"))])
    logprobs = begin(logprobs=True).piece(0, said)["choices"][0]["logprobs"]
    assert logprobs["content"] == [{"token": "é", "logprob": -9999.0, "bytes": [195, 169], "top_logprobs": []}]
    assert logprobs["reasoning_content"][0]["token"] == "h"
    assert begin().piece(0, said)["choices"][0]["logprobs"] is None


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
