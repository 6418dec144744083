from __future__ import annotations

import json

import pytest

from leanseek.server.completions import CompletionRequest
from leanseek.server.openai import ChatRequest, parse_chat_request
from leanseek.server.refusal import ApiError, parse_body
from leanseek.server.unserved import Unserved, UnservedChat

ASK = [{"role": "user", "content": "1+1"}]


@pytest.mark.parametrize("name", UnservedChat.model_fields)
def test_what_is_not_done_is_refused_by_its_name(name):
    with pytest.raises(ApiError, match=f"^{name} = 77: not done here; ") as told:
        parse_chat_request(json.dumps({"messages": ASK, name: 77}).encode())
    assert (told.value.status, told.value.param) == (422, name)
    assert parse_chat_request(json.dumps({"messages": ASK, name: None}).encode()).messages
    if name in Unserved.model_fields:
        with pytest.raises(ApiError, match=name):
            parse_body(CompletionRequest, json.dumps({"prompt": "a", name: 77}).encode(), "a prompt")


def test_values_that_ask_for_nothing_are_taken():
    neutral = {"min_tokens": 0, "skip_special_tokens": True, "use_beam_search": False, "length_penalty": 1.0}
    neutral |= {"mirostat": 0, "n_predict": -1, "functions": [], "modalities": ["text"], "repeat_penalty": 1}
    assert parse_chat_request(json.dumps({"messages": ASK, **neutral}).encode()).messages


def test_no_field_is_both_served_and_not():
    for request, unserved in ((ChatRequest, UnservedChat), (CompletionRequest, Unserved)):
        own = {
            name
            for one in request.__mro__
            if one not in unserved.__mro__
            for name in vars(one).get("__annotations__", ())
        }
        assert not own & set(unserved.model_fields)


@pytest.mark.parametrize(("name", "value"), [("min_tokens", False), ("use_beam_search", 0), ("skip_special_tokens", 1)])
def test_a_truth_is_no_number(name, value):
    with pytest.raises(ApiError, match=name):
        parse_chat_request(json.dumps({"messages": ASK, name: value}).encode())
