from __future__ import annotations

import json

from leanseek.messages import Message, ToolCall
from leanseek.server.memory import Memory
from tests.server.test_app import ASK, send

CALL = ToolCall("c1", "weather", '{"city":  "Köln"}')


def test_what_clients_change_is_mended():
    memory = Memory()
    memory.remember("hm", [CALL])
    sent_back = Message("assistant", "", None, (ToolCall("c1", "weather", '{"city": "Köln"}'),))
    assert memory.restore([sent_back]) == (Message("assistant", "", "hm", (CALL,)),)
    assert memory.restore([Message("user", "a")]) == (Message("user", "a"),)


def test_what_clients_mean_otherwise_stays():
    memory = Memory()
    memory.remember("hm", [CALL])
    for call in (ToolCall("c1", "weather", '{"city": "Bonn"}'), ToolCall("c1", "now", CALL.arguments)):
        message = Message("assistant", "", None, (call,))
        assert memory.restore([message]) == (message,)
    message = Message("assistant", "", "other", (CALL,))
    assert memory.restore([message]) == (message,)
    unknown = Message("assistant", "", None, (ToolCall("c2", "weather", "{"),))
    assert memory.restore([unknown]) == (unknown,)


def test_the_oldest_goes_first():
    memory = Memory(most_calls=2)
    memory.remember("", [ToolCall(str(i), "f", "{}") for i in range(3)])
    assert len(memory) == 2
    memory = Memory(most_characters=10)
    for i in range(5):
        memory.remember("hm", [ToolCall(str(i), "f", "{}")])
    assert len(memory) == 2


def test_a_second_turn_comes_back_as_it_was_said(speak, serve):
    engine = speak("", "which?", [ToolCall("", "weather", '{"city": "Köln"}')])
    listener = serve(engine)
    tool = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
    asked = {"messages": ASK, "max_tokens": 200, "tools": [tool]}
    _, _, text = send(listener, "POST", "/v1/messages", json.dumps(asked))
    (call,) = [block for block in json.loads(text)["content"] if block["type"] == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": call["id"], "content": "rain"}
    history = [*ASK, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}]
    send(listener, "POST", "/v1/messages", json.dumps({**asked, "messages": history}))
    said = engine.chat.reply(Message("assistant", "", None, (ToolCall("", "weather", '{"city": "Köln"}'),)))
    ids = engine.prompts[1]
    assert any(ids[at : at + len(said)] == said for at in range(len(ids)))
