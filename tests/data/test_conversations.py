"""A file of replies: what goes in comes out, a torn line is left out, and what is no conversation is told."""

from __future__ import annotations

import json

import pytest

from leanseek.data.conversations import Conversations
from leanseek.errors import DataError
from leanseek.messages import Message, ToolCall, ToolSpec

TALK = [
    Message("system", "Reasoning Effort: 50"),
    Message("user", "2+2\u2028?"),
    Message("assistant", "4", "two and two"),
]


def test_what_goes_in_comes_out(tmp_path):
    file = Conversations(tmp_path / "deep" / "replies.jsonl")
    assert file.keys() == set() and file.provenance() == []
    file.describe({"teacher": "server", "licence": "free"})
    file.add("a: 1", {"level": 3}, [TALK, TALK[1:]])
    file.add("a: 2", {"level": 3}, [])
    assert file.keys() == {"a: 1", "a: 2"} and file.provenance() == [{"teacher": "server", "licence": "free"}]
    assert file.kept() == [(TALK, []), (TALK[1:], [])]


def test_a_line_that_a_crash_cut_off_is_left_out_and_the_next_begins_anew(tmp_path):
    file = Conversations(tmp_path / "replies.jsonl")
    file.add("a", {}, [TALK])
    with file.path.open("a") as open_file:
        open_file.write('{"key": "b", "conversa')
    assert file.keys() == {"a"}
    file.add("b", {}, [TALK])
    assert file.keys() == {"a", "b"} and len(file.kept()) == 2


def test_a_file_of_ones_own_needs_messages_alone(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}] * 2
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert (
        Conversations(tmp_path / "own.jsonl").kept()
        == [([Message("user", "hi"), Message("assistant", "hello")], [])] * 2
    )


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "user", "content": 7}]},
        {"messages": 7},
        {"conversations": [["hello"]]},
    ],
)
def test_what_is_no_conversation_is_told_with_its_place(tmp_path, row):
    (tmp_path / "own.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=r"own\.jsonl: row 1 is not a conversation"):
        Conversations(tmp_path / "own.jsonl").kept()


def test_no_file_is_told(tmp_path):
    with pytest.raises(DataError, match="there is no such file of replies"):
        Conversations(tmp_path / "none.jsonl").kept()


def test_calls_of_tools_and_their_results_are_kept_as_openai_writes_them(tmp_path):
    call = ToolCall("c1", "add", '{"a": 1}')
    talk = [
        Message("user", "1+1?"),
        Message("assistant", "", "ask", (call,)),
        Message("tool", "2", tool_call_id="c1", name="add"),
        Message("assistant", "2", "so"),
    ]
    tools = [ToolSpec("add", "adds", {"type": "object"})]
    file = Conversations(tmp_path / "tools.jsonl")
    file.add("x", {}, [talk], tools)
    assert file.kept() == [(talk, tools)]
    written = json.loads(file.path.read_text())
    assert written["conversations"][0][1]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}
    assert written["tools"][0]["type"] == "function"
