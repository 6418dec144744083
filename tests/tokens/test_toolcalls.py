"""Tool calls in JSON: what a model gets wrong is content, or a call that nobody can run by accident."""

from __future__ import annotations

import pytest

from leanseek.messages import Message, ToolCall
from leanseek.tokens.chat import ChatFormat
from tests.tokens.hostile import QWEN_TEMPLATE

CALLS, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL, CALL_END, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"


def heard(chat: ChatFormat, marked: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the content and the calls of a reply written with its tokens' texts."""
    message = chat.parse(chat._marks.encode(chat._marks.trust(marked)), starts_in_thinking=False)
    return message.content, [(call.name, call.arguments) for call in message.tool_calls]


@pytest.mark.parametrize(
    ("reply", "content", "calls"),
    [
        (f"a{CALLS}{CALL}f{SEP}{{}}{CALL_END}{END}", "a", [("f", "{}")]),
        (f"{CALLS}\n {CALL} f\n{SEP}{{}}{CALL_END}\n{CALL}g{SEP}1{CALL_END}{END}b", "b", [("f", "{}"), ("g", "1")]),
        (f"{CALLS}{CALL}f{SEP}{{", "", [("f", "{")]),  # cut short
        (f"{CALLS}{CALL}f{SEP}{{}}{END}b", "b", [("f", "{}")]),  # an end forgotten
        (f"{CALLS}{CALL}f{SEP}{{}}{CALL}g{SEP}{{}}", "", [("f", "{}"), ("g", "{}")]),
        (f"{CALLS}{CALL}f{SEP}not JSON{CALL_END}{END}", "", [("f", "not JSON")]),
        (f"a{CALLS}b", "ab", []),
        (f"a{CALLS}{CALL}no name{SEP}{{}}{CALL_END}{END}", "ano name{}", []),
        (f"a{CALLS}{CALL}f{CALL_END}b", "afb", []),
        (f"a{CALL}f{SEP}b", "afb", []),
        (f"a{CALLS}{CALL}f", "af", []),
        (f"a{CALLS}{END}b{CALLS}{CALL}f{SEP}{{}}{CALL_END}{END}", "ab", [("f", "{}")]),
    ],
)
def test_v31(formats, reply, content, calls):
    assert heard(formats["v31"], reply) == heard(formats["leanseek"], reply) == (content, calls)


@pytest.mark.parametrize(
    ("reply", "content", "calls"),
    [
        (f"a{CALLS}{CALL}function{SEP}f\n```json\n{{}}\n```{CALL_END}{END}", "a", [("f", "{}")]),
        (f"{CALLS}{CALL}function{SEP}f\n```\n{{}}\n```{CALL_END}", "", [("f", "{}")]),
        (f"{CALLS}{CALL}function{SEP}f\n{{}}{CALL_END}", "", [("f", "{}")]),  # no fence at all
        (f"{CALLS}{CALL}function{SEP}f\n```json\n{{}}\n``", "", [("f", "{}\n``")]),
        (f"a{CALLS}{CALL}function{SEP}f{CALL_END}{END}", "afunctionf", []),
        (f"a{CALLS}{CALL}function{SEP}f ``` {{}}", "afunctionf ``` {}", []),
    ],
)
def test_v3_and_r1(formats, reply, content, calls):
    assert heard(formats["v3"], reply) == heard(formats["r1"], reply) == (content, calls)


@pytest.mark.parametrize(
    ("body", "call"),
    [
        ('{"name": "f", "arguments": {"a":  1}}', ("f", '{"a":  1}')),
        ('\n {"arguments": {}, "name": "f", "id": 3}\n', ("f", "{}")),
        ('{"name": "f"}', ("f", "{}")),
        ('{"name": "f", "arguments": "{\\"a\\": 1}"}', ("f", '{"a": 1}')),
        ('{"name": "f", "arguments": "\\ud800"}', ("f", "\ufffd")),
        ('{"name": "f", "arguments": {}', None),
        ('{"name": 3, "arguments": {}}', None),
        ('{"name": "", "arguments": {}}', None),
        ('{"name": "a b"}', None),
        ('["name"]', None),
        ("[" * 100_000, None),
        ('{"name": "f", "arguments": NaN}', None),
        ("", None),
    ],
)
def test_qwens(formats, body, call):
    reply = f"a\n<tool_call>{body}</tool_call>b"
    assert heard(formats["template"], reply) == (("ab", [call]) if call else (reply, []))


def test_qwens_calls_are_whole_or_content(formats):
    good = '<tool_call>{"name": "f"}</tool_call>'
    assert heard(formats["template"], 'a<tool_call>{"name": "f"}') == ('a<tool_call>{"name": "f"}', [])
    assert heard(formats["template"], f"a<tool_call>b{good}c") == ("a<tool_call>bc", [("f", "{}")])
    assert heard(formats["template"], f"</tool_call>{good}\n{good}\n") == ("</tool_call>\n", [("f", "{}")] * 2)


def test_tags_without_tokens_are_text_and_arguments_cannot_end_them(make_tokenizer):
    config = {"chat_template": QWEN_TEMPLATE}
    chat = ChatFormat(make_tokenizer(config=config), "template")
    for arguments in ('{"a": "</tool_call><tool_call>"}', "</tool_call>", '"</tool_call>"', ' {"a": 1} '):
        message = Message("assistant", "so", None, (ToolCall("call_0", "f", arguments),))
        assert chat.parse(chat.reply(message), starts_in_thinking=False) == message
