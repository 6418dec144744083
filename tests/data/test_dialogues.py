"""Dialogues: what a file of conversations may hold, and what of it is learnt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from leanseek.data.dialogues import examples_of, fitted, read_dialogues, set_aside
from leanseek.errors import DataError
from leanseek.messages import Message, ToolCall, ToolSpec
from leanseek.tokens.chat import ChatFormat

ASKED = {"role": "user", "content": "12"}
SAID = {"role": "assistant", "content": "24"}
CALL = {"id": "a", "type": "function", "function": {"name": "double", "arguments": '{"of": 12}'}}
TOOL = {"type": "function", "function": {"name": "double", "description": "twice", "parameters": {"type": "object"}}}


@pytest.fixture
def written(tmp_path: Path):
    """Return a function that writes a file of lines, JSON or bytes."""

    def write(*lines: object) -> Path:
        path = tmp_path / "d.jsonl"
        path.write_bytes(b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines) + b"\n")
        return path

    return write


def learnt_text(chat: ChatFormat, example: tuple[list[int], list[bool]]) -> list[str]:
    """Return each run of tokens that are learnt, as text."""
    runs: list[list[int]] = []
    before = False
    for token, keep in zip(*example, strict=True):
        if keep and not before:
            runs.append([])
        if keep:
            runs[-1].append(token)
        before = keep
    return [chat.tokenizer.decode(run, skip_special=True) for run in runs]


def test_all_that_a_message_may_have(written):
    path = written(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                ASKED,
                {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "hm"},
                {"role": "tool", "content": "24", "tool_call_id": "a"},
                SAID,
                {"role": "user", "content": "left out: nothing replies to it"},
            ],
            "tools": [TOOL],
        },
        b"  ",
        {"messages": [ASKED, SAID | {"tool_calls": [{"function": {"name": "f", "arguments": {"x": "ü"}}}]}]},
    )
    first, second = read_dialogues(path)
    assert first.tools == (ToolSpec("double", "twice", {"type": "object"}),)
    assert first.messages == (
        Message("system", "Be brief."),
        Message("user", "12"),
        Message("assistant", "", "hm", (ToolCall("a", "double", '{"of": 12}'),)),
        Message("tool", "24", tool_call_id="a"),
        Message("assistant", "24"),
    )
    assert second.where.endswith("d.jsonl:3")
    assert second.messages[1].tool_calls == (ToolCall("call_0", "f", '{"x": "ü"}'),)


@pytest.mark.parametrize("name", ["leanseek", "v2", "v3", "v31"])
def test_every_turn_of_the_assistant_is_learnt_and_nothing_else(written, tiny_tokenizer, name):
    path = written({"messages": [ASKED, SAID, {"role": "user", "content": "7"}, SAID | {"content": "14"}]})
    chat = ChatFormat(tiny_tokenizer, name)
    (example,) = examples_of(read_dialogues(path), chat, 100)
    said = learnt_text(chat, example)
    assert len(said) == 2 and said[0].endswith("24") and said[1].endswith("14")
    assert [i for i, keep in zip(*example, strict=True) if keep].count(tiny_tokenizer.eos_id) == 2, "where to stop, too"
    assert "12" not in "".join(said) and "7" not in "".join(said)


def test_thinking_and_calls_are_learnt(written, tiny_tokenizer):
    turns = [ASKED, SAID | {"reasoning_content": "two of them"}]
    chat = ChatFormat(tiny_tokenizer)
    (example,) = examples_of(read_dialogues(written({"messages": turns})), chat, 100)
    (said,) = learnt_text(chat, example)
    assert "two of them" in said and "24" in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", r":1 is not JSON"),
        (b"\xff{}", r":1 is not UTF-8 \(byte 0"),
        ([1], r":1 is not a JSON object, but list"),
        ({"text": "x"}, r":1: messages must be a list of messages.*got nothing"),
        ({"messages": []}, r"got an empty list"),
        ({"messages": ["hi"]}, r"messages\[0\] must be an object"),
        ({"messages": [ASKED]}, r":1 has no assistant turn"),
        ({"messages": [SAID]}, r":1 begins with the assistant"),
        ({"messages": [ASKED | {"role": "asistant"}]}, r"messages\[0\]\.role = 'asistant'.*did you mean assistant"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\] has no content"),
        ({"messages": [{"role": "user", "content": 5}]}, r"content must be a text; got int"),
        ({"messages": [ASKED | {"reasoning_content": "x"}]}, r"reasoning_content is the assistant's alone"),
        ({"messages": [ASKED, SAID], "tools": [{"name": "x"}]}, r"tools\[0\] must be"),
        ({"messages": [ASKED, SAID], "tools": "x"}, r"tools must be a list"),
        (
            {"messages": [ASKED, SAID | {"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            r"messages\[1\]\.tool_calls\[0\]\.function\.arguments must be a JSON object",
        ),
    ],
)
def test_what_is_no_conversation_is_told_by_its_line(written, line, said):
    with pytest.raises(DataError, match=said):
        read_dialogues(written(line))


def test_no_file_and_an_empty_one(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        read_dialogues(tmp_path / "gone.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="is empty"):
        read_dialogues(tmp_path / "empty.jsonl")


def test_longer_ones_are_refused_or_lose_their_end(written, tiny_tokenizer):
    chat = ChatFormat(tiny_tokenizer)
    dialogues = read_dialogues(written({"messages": [ASKED, SAID | {"content": "24" * 20}]}))
    (whole,) = examples_of(dialogues, chat, 1000)
    count, first = len(whole[0]), whole[1].index(True)
    assert examples_of(dialogues, chat, count) == [whole]
    with pytest.raises(DataError, match=rf"d\.jsonl:1 has {count} tokens, but {count - 1} are the most"):
        examples_of(dialogues, chat, count - 1)
    assert examples_of(dialogues, chat, first + 2, cut=True) == [(whole[0][: first + 2], whole[1][: first + 2])]
    with pytest.raises(DataError, match="hold no reply"):
        fitted(whole, "d:1", first, True)


def test_a_share_is_set_aside(monkeypatch):
    items = list(range(40))
    taught, aside = set_aside(items, 0.05, 3)
    assert len(aside) == 2 and sorted(taught + aside) == items and taught == sorted(taught)
    assert (taught, aside) == set_aside(items, 0.05, 3) != set_aside(items, 0.05, 4)
    assert set_aside(items, 0.0, 3) == (items, []) and set_aside([7], 0.5, 3) == ([7], [])
    assert [len(part) for part in set_aside([1, 2], 0.9, 0)] == [1, 1], "something is left to learn from"
