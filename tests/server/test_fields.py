"""Every field that OpenAI's and Anthropic's clients can send is served, refused by its name, or known to be moot."""

from __future__ import annotations

import json

import pytest
from anthropic.types import message_count_tokens_params, message_create_params
from anthropic.types.beta import message_create_params as beta_params
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params

from leanseek.server.anthropic import CountRequest, MessagesRequest
from leanseek.server.completions import CompletionRequest
from leanseek.server.openai import ChatRequest
from leanseek.server.refusal import ApiError, parse_body
from leanseek.server.responses import ResponsesRequest
from leanseek.server.unserved import Only

# Fields without which a reply would be the same here: how a provider bills, routes, keeps and labels requests; how its
# cache is marked, which here needs no marks; and hints that a model may pass over.
MOOT = {
    *("metadata", "service_tier", "store", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"),
    *("prediction", "verbosity", "stream_options", "truncation", "max_tool_calls", "access_programs", "image"),
    "background_options",  # `background` itself is refused
    *("cache_control", "diagnostics", "inference_geo", "speed", "user_profile_id", "workspace_id", "betas"),
    *("billing_policy", "fallbacks", "fallback_credit_token", "thread"),
}
KNOWN = [
    (ChatRequest, chat_params.CompletionCreateParamsBase),
    (CompletionRequest, completion_create_params.CompletionCreateParamsBase),
    (ResponsesRequest, response_create_params.ResponseCreateParamsBase),
    (MessagesRequest, message_create_params.MessageCreateParamsBase),
    (MessagesRequest, beta_params.MessageCreateParamsBase),
    (CountRequest, message_count_tokens_params.MessageCountTokensParams),
]
LEAST = {
    ChatRequest: {"messages": [{"role": "user", "content": "a"}]},
    ResponsesRequest: {"input": "a"},
    MessagesRequest: {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4},
}


@pytest.mark.parametrize(("request_type", "sent"), KNOWN, ids=lambda one: one.__module__.rpartition(".")[2])
def test_no_field_of_the_clients_is_overlooked(request_type, sent):
    overlooked = set(sent.__annotations__) - set(request_type.model_fields) - MOOT
    assert not overlooked, "decide: serve it, refuse it by its name (server/unserved.py), or say why it is moot"


@pytest.mark.parametrize("request_type", LEAST)
def test_what_would_change_a_reply_and_is_not_done_is_refused_by_its_name(request_type):
    least = LEAST[request_type]
    assert parse_body(request_type, json.dumps(least).encode(), "it")
    refused = [
        name for name, one in request_type.model_fields.items() if any(isinstance(mark, Only) for mark in one.metadata)
    ]
    assert len(refused) >= 5
    for name in refused:
        with pytest.raises(ApiError, match=f"^{name}.*not done here; ") as told:
            parse_body(request_type, json.dumps({**least, name: {"any": 77}}).encode(), "it")
        assert told.value.param == name
        assert parse_body(request_type, json.dumps({**least, name: None}).encode(), "it")
