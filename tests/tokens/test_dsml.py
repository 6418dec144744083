"""DSML: values without loss, whatever they hold; and what a model gets wrong."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanseek.errors import UsageError
from leanseek.messages import Message, ToolCall
from leanseek.tokens.chat import ChatFormat
from tests.tokens.hostile import HOSTILE, OBJECTS
from tests.tokens.test_toolcalls import heard

OPEN, CLOSE = "<｜DSML｜function_calls>", "</｜DSML｜function_calls>"
INVOKE, INVOKE_END = '<｜DSML｜invoke name="f">', "</｜DSML｜invoke>"
END = "</｜DSML｜parameter>"


def parameter(name: str, value: str, string: str = "true") -> str:
    return f'<｜DSML｜parameter name="{name}" string="{string}">{value}{END}'


@pytest.mark.parametrize(
    ("reply", "content", "calls"),
    [
        (f"a\n\n{OPEN}\n{INVOKE}\n{parameter('x', '1')}\n{INVOKE_END}\n{CLOSE}", "a", [("f", '{"x": "1"}')]),
        (f"a{OPEN}{INVOKE}{parameter('x', '1', 'false')}{INVOKE_END}{CLOSE}b", "ab", [("f", '{"x": 1}')]),
        (f"{OPEN}{INVOKE}{parameter('x', ' [1, 2.50] ', 'false')}{INVOKE_END}", "", [("f", '{"x": [1, 2.50]}')]),
        (f"{OPEN}{INVOKE}{INVOKE_END}{INVOKE}{INVOKE_END}{CLOSE}", "", [("f", "{}")] * 2),
        # Not JSON where JSON was promised: the model meant a string.
        (f"{OPEN}{INVOKE}{parameter('x', 'hi', 'false')}{INVOKE_END}", "", [("f", '{"x": "hi"}')]),
        (f"{OPEN}{INVOKE}{parameter('x', 'NaN', 'false')}{INVOKE_END}", "", [("f", '{"x": "NaN"}')]),
        # Broken off: unfinished JSON, which nobody can run.
        (f'{OPEN}{INVOKE}<｜DSML｜parameter name="x" string="true">rm', "", [("f", '{"x": "rm')]),
        (f"{OPEN}{INVOKE}{parameter('x', '1')}", "", [("f", '{"x": "1"')]),
        (f"{OPEN}{INVOKE}{parameter('x', '1')}oops{INVOKE_END}", "oops</｜DSML｜invoke>", [("f", '{"x": "1"')]),
        (f'{OPEN}{INVOKE}<｜DSML｜parameter name="x" string="true">a{INVOKE_END}', "invoke>", [("f", '{"x": "a')]),
        # No call at all.
        (f"a\n\n{OPEN}b", f"a\n\n{OPEN}b", []),
        (f"a{OPEN}\n{INVOKE}b", f"a{OPEN}\n{INVOKE}b", []),
        (f'a{OPEN}<｜DSML｜invoke name="">{INVOKE_END}', f'a{OPEN}<｜DSML｜invoke name="">{INVOKE_END}', []),
        (
            f'a{OPEN}{INVOKE}<｜DSML｜parameter name="x">1{END}',
            f'a{OPEN}{INVOKE}<｜DSML｜parameter name="x">1{END}',
            [],
        ),
        ("a\n\n<｜DSML｜tool_calls>", "a\n\n<｜DSML｜tool_calls>", []),
        (f"a\n\n{OPEN[:9]}", f"a\n\n{OPEN[:9]}", []),
    ],
)
@pytest.mark.parametrize("has_token", [True, False])
def test_replies_of_a_model(formats, tiny_tokenizer, has_token, reply, content, calls):
    chat = formats["v32"] if has_token else ChatFormat(tiny_tokenizer, "v32")
    assert heard(chat, reply) == (content, calls)


@given(values=OBJECTS, content=st.text(alphabet="ab <\n", max_size=8))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_without_a_dsml_token_values_come_back_too(tiny_tokenizer, values, content):
    """The tags are text then, and a value may hold one."""
    chat = ChatFormat(tiny_tokenizer, "v32")
    message = Message("assistant", content, None, (ToolCall("call_0", "f", json.dumps(values)),))
    said = chat.parse(chat.reply(message), starts_in_thinking=False)
    assert said.content == content
    assert [json.loads(call.arguments) for call in said.tool_calls] == [values]


@given(key=HOSTILE | st.text(), value=HOSTILE)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_any_name_and_string_comes_back(formats, key, value):
    """Half surrogate pairs among them: JSON can say these, so they are said as JSON."""
    message = Message("assistant", "", None, (ToolCall("call_0", "f", json.dumps({key: value, "\ud800": "\udc00"})),))
    (call,) = formats["v32"].parse(formats["v32"].reply(message), starts_in_thinking=False).tool_calls
    assert json.loads(call.arguments) == {key: value, "\ud800": "\udc00"}


def test_numbers_keep_their_digits(formats):
    arguments = '{"a": 1e400, "b": 0.10, "c": ' + "9" * 5000 + "}"
    message = Message("assistant", "", None, (ToolCall("call_0", "f", arguments),))
    assert formats["v32"].parse(formats["v32"].reply(message), starts_in_thinking=False) == message


@pytest.mark.parametrize("arguments", ["[1]", "{", '"a"', "null", '{"a": NaN}', "{'a': 1}"])
def test_arguments_that_are_no_object_cannot_be_said(formats, arguments):
    with pytest.raises(UsageError, match="can only say a JSON object"):
        formats["v32"].reply(Message("assistant", "", None, (ToolCall("call_0", "f", arguments),)))
