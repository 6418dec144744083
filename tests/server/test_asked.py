"""What a request asks for, as the model's prompt: effort, for models that were trained to heed it."""

from __future__ import annotations

import json

import pytest

from leanseek.server.anthropic import MessagesRequest
from leanseek.server.openai import ChatRequest
from leanseek.server.responses import ResponsesRequest
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.tokenizer import Tokenizer

SAID = [{"role": "user", "content": "2+2"}]


@pytest.fixture
def chat(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save(tmp_path)
    taught = Tokenizer.load(tmp_path)
    taught.efforts = ("low", "high", "max")
    return ChatFormat(taught)


def told(chat: ChatFormat, asked) -> str:
    return chat.tokenizer.decode(asked.prompt(chat))


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, "Reasoning Effort: 75"),
        ({"reasoning_effort": "low"}, "Reasoning Effort: 50"),
        ({"reasoning_effort": "max"}, "Reasoning Effort: 100"),
        ({"reasoning_effort": "none"}, ""),
        ({"thinking": {"type": "disabled"}}, ""),
    ],
)
def test_a_model_that_heeds_effort_is_told_of_it(chat, tiny_tokenizer, fields, line):
    asked = ChatRequest.model_validate({"messages": SAID, **fields}).asked()
    assert line in told(chat, asked) and ("Effort" in told(chat, asked)) == bool(line)
    assert "Effort" not in told(ChatFormat(tiny_tokenizer), asked), "others would not know what it means"


def test_every_protocol_passes_it_on(chat):
    anthropic = {"messages": SAID, "max_tokens": 5, "output_config": {"effort": "low"}}
    responses = {"input": "2+2", "reasoning": {"effort": "low"}}
    for request in (
        MessagesRequest.model_validate_json(json.dumps(anthropic)),
        ResponsesRequest.model_validate_json(json.dumps(responses)),
    ):
        assert "Reasoning Effort: 50" in told(chat, request.asked())
