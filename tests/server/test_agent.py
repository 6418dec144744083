"""A conversation of many turns with tools, by OpenAI's own client: what was read or said is not read again."""

from __future__ import annotations

import json

from leanseek.engine.engine import BLOCK_TOKENS, Engine
from leanseek.engine.paged_cache import PagedCache

FLAG = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "switch", "parameters": FLAG, "strict": True}}


def test_ten_turns_read_only_what_is_new(make_model, tiny_tokenizer, serve, connect):
    model = make_model(max_position_embeddings=4096)
    cache_bytes = 16384 * PagedCache.bytes_per_token(model.cache_specs())
    client = connect(serve(Engine(model, tiny_tokenizer, max_batch=2, cache_bytes=cache_bytes)))
    messages = [{"role": "user", "content": "switch it"}]
    plain = {"thinking": {"type": "disabled"}}
    before = 0
    for turn in range(10):
        answer = client.chat.completions.create(
            model="tiny", messages=messages, tools=[TOOL], tool_choice="required", parallel_tool_calls=False,
            max_tokens=300, seed=turn, extra_body=plain,
        )  # fmt: skip
        choice = answer.choices[0]
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls
        assert isinstance(json.loads(call.function.arguments)["on"], bool)
        messages += [
            choice.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": f"done {turn}"},
        ]
        if turn:
            new = answer.usage.prompt_tokens - before  # the result, and the opening of the reply
            assert 0 < new < 40
            # The last token of a reply is drawn and never read; a hit may end within a block.
            assert answer.usage.prompt_cache_miss_tokens <= new + 2, turn
        before = answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert before > 10 * BLOCK_TOKENS
