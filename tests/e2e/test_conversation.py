"""An agent's conversation over a crash: tool calls come back as they were said, and only what is new is read."""

from __future__ import annotations

import json
import os
import signal
import time

import openai

from leanseek.checkpoint.directory import save_model
from tests.e2e.test_chaos import _start
from tests.server.test_agent import TOOL


def test_ten_turns_with_tools_and_a_kill_between_them(tmp_path, make_model, tiny_tokenizer):
    save_model(make_model(max_position_embeddings=4096), tmp_path / "model", tiny_tokenizer)
    messages = [{"role": "user", "content": "switch it"}]
    said_tokens = 0
    for turns in (range(5), range(5, 10)):
        child, port = _start(tmp_path / "model", tmp_path / "cache")
        try:
            with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
                for turn in turns:
                    answer = client.chat.completions.create(
                        model="model", messages=messages, tools=[TOOL], tool_choice="required",
                        parallel_tool_calls=False, max_tokens=300, seed=turn,
                        extra_body={"thinking": {"type": "disabled"}},
                    )  # fmt: skip
                    (call,) = answer.choices[0].message.tool_calls
                    assert isinstance(json.loads(call.function.arguments)["on"], bool)
                    messages += [
                        answer.choices[0].message.model_dump(exclude_none=True),
                        {"role": "tool", "tool_call_id": call.id, "content": f"done {turn}"},
                    ]
                    if turn:
                        new = answer.usage.prompt_tokens - said_tokens
                        # The last token of a reply is drawn and never read; a hit may end within a block.
                        assert 0 < answer.usage.prompt_cache_miss_tokens <= new + 2, turn
                    said_tokens = answer.usage.prompt_tokens + answer.usage.completion_tokens
            time.sleep(0.5)  # the writer is a few milliseconds behind
            os.kill(child.pid, signal.SIGKILL)
        finally:
            child.kill()
            child.wait()
