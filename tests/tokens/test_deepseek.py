"""DeepSeek's formats, token for token: against transformers over templates laid out as theirs, and the facts."""

from __future__ import annotations

import pytest

from leanseek.messages import Message, ToolCall, ToolSpec
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.tokenizer import CHAT_TEMPLATE

# In words of our own, from the facts: what is said, in which order, between which tokens.
V2_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ 'User: ' ~ m.content ~ '\\n\\n' }}"
    "{% elif m.role == 'system' %}{{ m.content ~ '\\n\\n' }}{% else %}{{ 'Assistant: ' ~ m.content ~ eos_token }}"
    "{% endif %}{% endfor %}{{ 'Assistant:' }}"
)
FENCED = "'function<｜tool▁sep｜>' ~ c.function.name ~ '\\n```json\\n' ~ c.function.arguments ~ '\\n```'"
BARE = "c.function.name ~ '<｜tool▁sep｜>' ~ c.function.arguments"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}{% endfor %}"
    "{% set ns = namespace(tool=false) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{{ '<｜User｜>' ~ m.content }}"
    "{% elif m.role == 'tool' %}OUTPUT{% set ns.tool = true %}"
    "{% elif m.role == 'assistant' %}{% if ns.tool %}AFTER{% else %}{{ '<｜Assistant｜>CLOSED' }}{% endif %}"
    "{% set ns.tool = false %}{{ m.content }}{% if m.tool_calls %}{{ '<｜tool▁calls▁begin｜>' }}"
    "{% for c in m.tool_calls %}{{ '<｜tool▁call▁begin｜>' ~ CALL ~ '<｜tool▁call▁end｜>' }}"
    "{% if not loop.last %}BETWEEN{% endif %}{% endfor %}{{ '<｜tool▁calls▁end｜>' }}{% endif %}"
    "{{ eos_token }}{% endif %}"
    "{% endfor %}{% if ns.tool %}AFTER{% else %}{{ '<｜Assistant｜>' }}"
    "{% if not thinking %}SHUT{% else %}OPEN{% endif %}"
    "{% endif %}"
)
RESULT = "{{ '<｜tool▁output▁begin｜>' ~ m.content ~ '<｜tool▁output▁end｜>' }}"
FIRST = "{% if not ns.tool %}{{ '<｜tool▁outputs▁begin｜>' }}{% else %}{{ '\\n' }}{% endif %}" + RESULT
ENDED = "{{ '<｜tool▁outputs▁end｜>' }}"


def filled(**parts: str) -> str:
    template = TEMPLATE
    for word, text in parts.items():
        template = template.replace(word, text)
    return template


OLD = {"OUTPUT": FIRST, "AFTER": ENDED, "CALL": FENCED, "BETWEEN": "{{ '\\n' }}", "CLOSED": ""}
TEMPLATES = {
    "v2": V2_TEMPLATE,
    "v3": filled(**OLD, SHUT="", OPEN=""),
    "r1": filled(**OLD, SHUT="{{ '<think>\\n\\n</think>\\n\\n' }}", OPEN="{{ '<think>\\n' }}"),
    "v31": filled(OUTPUT=RESULT, AFTER="", CALL=BARE, BETWEEN="", CLOSED="</think>", SHUT="</think>", OPEN="<think>"),
    "leanseek": CHAT_TEMPLATE,
}
CALLS = (ToolCall("call_0", "f", '{"a": [1, "的"]}'), ToolCall("call_1", "g", "{}"))
TALK = [
    Message("system", "Be brief. 12"),
    Message("user", " start 5\n"),
    Message("assistant", "7", "so"),
    Message("user", "again\n\n"),
]
WORK = [*TALK, Message("assistant", "look:", None, CALLS), Message("tool", "12 的"), Message("tool", "")]


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_a_template_in_transformers(tmp_path, tiny_tokenizer, name, thinking):
    from transformers import AutoTokenizer

    tiny_tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    ours = ChatFormat(tiny_tokenizer, name)
    conversations = [TALK[:2], TALK]
    if name not in ("v2", "leanseek"):
        conversations += [[*WORK, Message("assistant", "done"), TALK[1]], *([] if thinking else [WORK])]
    for messages in conversations:
        plain = [as_json(message) for message in messages]
        asked = {"chat_template": TEMPLATES[name], "add_generation_prompt": True, "thinking": thinking}
        text = theirs.apply_chat_template(plain, tokenize=False, **asked)
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.prompt(messages, thinking=thinking) == ids
        assert tiny_tokenizer.decode(ids, skip_special=False) == text


def as_json(message: Message) -> dict:
    calls = [{"type": "function", "function": {"name": c.name, "arguments": c.arguments}} for c in message.tool_calls]
    return {"role": message.role, "content": message.content, **({"tool_calls": calls} if calls else {})}


@pytest.mark.parametrize("name", ["r1", "v31", "leanseek"])
def test_a_tools_result_is_followed_by_thinking_if_that_is_asked(formats, name):
    shown = said(formats[name], formats[name].prompt(WORK))
    assert shown.endswith("<think>" if name == "v31" else "<think>\n")
    assert not said(formats[name], formats[name].prompt(WORK, thinking=False)).endswith("think>")


def said(chat: ChatFormat, ids: list[int]) -> str:
    return chat.tokenizer.decode(ids, skip_special=False)


TOOL = ToolSpec("f", "Does it.", {"type": "object", "properties": {"a": {"type": "string"}}})


@pytest.mark.parametrize("name", ["leanseek", "v3", "r1", "v31", "v32"])
def test_tools_are_listed_behind_the_system_message(formats, name):
    shown = said(formats[name], formats[name].prompt(TALK[:2], tools=[TOOL]))
    before, after = shown.split("\n\n## Tools\n")
    assert before == "<｜begin▁of▁sentence｜>Be brief. 12"
    listed, asked = after.split("<｜User｜>")
    assert (
        "\n### f\nDescription: Does it.\n\nParameters: {" in listed
        and '"properties": {"a": {"type": "string"}}' in listed
    )
    assert asked.startswith(" start 5\n")
    marks = {"v32": '<｜DSML｜invoke name="NAME">', "v3": "<｜tool▁sep｜>NAME\n```json\n", "r1": "NAME\n```json\nARG"}
    assert marks.get(name, "<｜tool▁call▁begin｜>NAME<｜tool▁sep｜>ARGUMENTS<｜tool▁call▁end｜>") in listed


LOOP = [
    Message("user", "a"),
    Message("assistant", "b", "old"),
    Message("user", "c"),
    Message("assistant", "d", "kept", (ToolCall("call_0", "f", '{"x": "<y>", "n": [1]}'), ToolCall("call_1", "g", ""))),
    Message("tool", "r"),
    Message("tool", "s"),
]


def test_v32_keeps_thinking_inside_a_tool_loop_and_no_longer(formats):
    chat = formats["v32"]
    start = "<｜begin▁of▁sentence｜><｜User｜>a<｜Assistant｜></think>b<｜end▁of▁sentence｜><｜User｜>c<｜Assistant｜>"
    calls = (
        "d\n\n<｜DSML｜function_calls>\n"
        '<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="x" string="true"><y></｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="n" string="false">[1]</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
        '<｜DSML｜invoke name="g">\n\n</｜DSML｜invoke>\n'
        "</｜DSML｜function_calls><｜end▁of▁sentence｜>"
        "\n\n<function_results>\n<result>r</result>\n<result>s</result>\n</function_results>\n\n"
    )
    assert said(chat, chat.prompt(LOOP)) == f"{start}<think>kept</think>{calls}<think>"
    assert said(chat, chat.prompt(LOOP, thinking=False)) == f"{start}</think>{calls}</think>"
    later = [*LOOP, Message("assistant", "e", "new"), Message("user", "f")]
    shown = said(chat, chat.prompt(later))
    assert shown == f"{start}</think>{calls}</think>e<｜end▁of▁sentence｜><｜User｜>f<｜Assistant｜><think>"
    assert said(chat, chat.prompt([*LOOP, Message("assistant", "e", "new")])).count("<think>") == 3


def test_a_conversation_may_begin_anyhow(formats):
    for name in ("leanseek", "v3", "r1", "v31", "v32"):
        for messages in ([], [Message("assistant", "a", "b")], [Message("tool", "c")], [Message("system", "d")]):
            shown = said(formats[name], formats[name].prompt(messages, thinking=False))
            assert shown.startswith("<｜begin▁of▁sentence｜>")
            assert messages == [] or messages[0].content in shown


def test_several_system_messages_are_one_where_deepseek_says_so(formats):
    messages = [Message("system", "a"), Message("user", "b"), Message("system", "c")]
    assert said(formats["v31"], formats["v31"].prompt(messages)).startswith("<｜begin▁of▁sentence｜>a\n\nc<｜User｜>b")
    assert said(formats["leanseek"], formats["leanseek"].prompt(messages)).startswith(
        "<｜begin▁of▁sentence｜>a<｜User｜>bc"
    )
