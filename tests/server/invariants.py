"""What every stream must keep to, whatever it says: OpenAI's, as one checker over recorded events."""

from __future__ import annotations

import json
from typing import Any


def events_of(body: bytes) -> list[Any]:
    """Return the data of each event; "[DONE]" as it is."""
    found = []
    for event in body.decode().split("\n\n")[:-1]:
        lines = [line for line in event.split("\n") if not line.startswith(":")]
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        if data:
            found.append(data[0] if data[0] == "[DONE]" else json.loads(data[0]))
    return found


def check_chat_stream(body: bytes, *, n: int = 1, usage: bool = False) -> list[dict[str, Any]]:
    """Check a recorded stream of /v1/chat/completions; return each choice's message, put together.

    Args:
        body: as received.
        n: choices there must be.
        usage: whether token counts were asked for.
    """
    events = events_of(body)
    assert events[-1] == "[DONE]"
    chunks = events[:-1]
    assert len({(c["id"], c["created"], c["model"], c["object"], c["system_fingerprint"]) for c in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"
    if usage:
        assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"] > 0
        chunks = chunks[:-1]
        assert all(chunk["usage"] is None for chunk in chunks)
    else:
        assert all("usage" not in chunk for chunk in chunks)
    assert all(len(chunk["choices"]) == 1 for chunk in chunks)
    messages = []
    for index in range(n):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        messages.append(_check_choice(mine))
    assert {c["choices"][0]["index"] for c in chunks} == set(range(n))
    return messages


def _check_choice(mine: list[dict[str, Any]]) -> dict[str, Any]:
    assert mine[0]["delta"]["role"] == "assistant"
    assert mine[0]["delta"].get("content") in (None, "")
    assert all("role" not in one["delta"] for one in mine[1:])
    assert all(one["finish_reason"] is None for one in mine[:-1])
    assert mine[-1]["delta"] == {} and mine[-1]["finish_reason"] is not None
    whole: dict[str, Any] = {"reasoning_content": "", "content": "", "tool_calls": [], "logprobs": []}
    for one in mine[1:-1]:
        delta = one["delta"]
        assert delta or one["logprobs"], "an empty delta says nothing"
        assert set(delta) <= {"content", "reasoning_content", "tool_calls"}
        if delta.get("reasoning_content"):
            assert not whole["content"] and not whole["tool_calls"], "thinking comes first"
        for name in ("reasoning_content", "content"):
            assert delta.get(name) != ""
            whole[name] += delta.get(name, "")
        for call in delta.get("tool_calls", ()):
            _check_call(call, whole["tool_calls"])
        whole["logprobs"] += (one["logprobs"] or {}).get("content") or []
    if whole["logprobs"]:
        assert "".join(one["token"] for one in whole["logprobs"]) == whole["content"]
    if whole["tool_calls"]:  # "stop": a stop text cut a call off
        assert mine[-1]["finish_reason"] in ("tool_calls", "stop", "length", "insufficient_system_resource")
    else:
        assert mine[-1]["finish_reason"] != "tool_calls"
    return {**whole, "finish_reason": mine[-1]["finish_reason"]}


def _check_call(call: dict[str, Any], calls: list[dict[str, Any]]) -> None:
    if call["index"] == len(calls):
        assert call["id"] and call["type"] == "function" and call["function"]["name"]
        calls.append({"id": call["id"], "name": call["function"]["name"], "arguments": ""})
    else:
        assert call["index"] == len(calls) - 1, "calls come one after the other"
        assert "id" not in call and "type" not in call and "name" not in call["function"]
        assert call["function"]["arguments"]
    calls[-1]["arguments"] += call["function"]["arguments"]
