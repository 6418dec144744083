"""The chat format: what is rendered is parsed back, streamed or whole, and only the reply is learnt."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanseek.errors import CheckpointError, ConfigError, UsageError
from leanseek.messages import Message, ToolCall, ToolSpec
from leanseek.tokens.arguments import is_name
from leanseek.tokens.chat import FORMATS, ChatFormat, recognise
from leanseek.tokens.dsml import DSML
from leanseek.tokens.tokenizer import (
    ASSISTANT,
    BOS,
    CHAT_TEMPLATE,
    END_THINK,
    EOS,
    SPECIAL_TOKENS,
    THINK,
    USER,
)
from tests.tokens.hostile import ANY_ARGUMENTS, ARGUMENTS, HOSTILE, PIECES, QWEN_TEMPLATE, assistant

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.lists(
    st.sampled_from(["</think>", "<think>", EOS, USER, "\n", " ", "12", "😀"]), max_size=8
).map("".join)


@pytest.fixture(scope="session")
def chat(tiny_tokenizer) -> ChatFormat:
    return ChatFormat(tiny_tokenizer)


@given(content=TEXTS, reasoning=st.none() | TEXTS)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_rendered_message_is_parsed_back(chat, content, reasoning):
    message = Message("assistant", content, reasoning)
    assert chat.parse(chat.reply(message), starts_in_thinking=reasoning is not None) == message


@given(ids=st.lists(st.integers(0, 319), max_size=30), thinking=st.booleans())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_streaming_and_parsing_say_the_same_of_any_tokens(chat, tiny_tokenizer, ids, thinking):
    """Any ids at all: a young model's reply is data, not a crash."""
    message = chat.parse(ids, starts_in_thinking=thinking)
    stream = chat.stream(starts_in_thinking=thinking)
    deltas = [*(stream.push(token) for token in ids), stream.flush()]
    assert "".join(d.content for d in deltas) == message.content
    assert "".join(d.reasoning_content for d in deltas) == (message.reasoning_content or "")
    assert (message.reasoning_content is not None) == thinking
    heard = ids[: ids.index(tiny_tokenizer.eos_id)] if tiny_tokenizer.eos_id in ids else ids
    if thinking and chat.end_think_id in heard:
        at = heard.index(chat.end_think_id)
        assert message.content == tiny_tokenizer.decode(heard[at + 1 :])
        assert message.reasoning_content == tiny_tokenizer.decode(heard[:at]).removesuffix("\n")
    elif thinking:
        assert message.content == "" and message.reasoning_content == tiny_tokenizer.decode(heard).removesuffix("\n")
    else:
        assert message.content == tiny_tokenizer.decode(heard)


def test_a_prompt_is_r1s(chat, tiny_tokenizer):
    messages = [
        Message("system", "Be brief."),
        Message("user", "start 5"),
        Message("assistant", "7", "5 +2 =7"),
        Message("user", "again"),
    ]
    shown = tiny_tokenizer.decode(chat.prompt(messages), skip_special=False)
    history = f"{BOS}Be brief.{USER}start 5{ASSISTANT}{END_THINK}7{EOS}{USER}again{ASSISTANT}"
    assert shown == f"{history}{THINK}\n"
    assert tiny_tokenizer.decode(chat.prompt(messages, thinking=False), skip_special=False) == history + END_THINK


def test_special_tokens_in_a_message_stay_text(chat, tiny_tokenizer):
    ids = chat.prompt([Message("user", f"{EOS}{ASSISTANT}</think>")])
    assert ids.count(tiny_tokenizer.eos_id) == 0 and ids.count(chat.end_think_id) == 0
    assert ids.count(tiny_tokenizer.id_of(ASSISTANT)) == 1


@pytest.mark.parametrize("reasoning", [None, "", "a step\nanother"])
def test_an_example_is_prompt_and_reply_and_only_the_reply_is_learnt(chat, tiny_tokenizer, reasoning):
    question, reply = Message("user", "start 5"), Message("assistant", "7", reasoning)
    ids, learnt = chat.example([question, reply])
    prompt = chat.prompt([question], thinking=reasoning is not None)
    assert ids == prompt + chat.reply(reply)
    assert learnt == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
    assert ids[-1] == tiny_tokenizer.eos_id


def test_an_example_without_a_reply_is_refused(chat):
    for messages in ([], [Message("user", "start 5")]):
        with pytest.raises(UsageError, match="must end with an assistant message"):
            chat.example(messages)


def test_nothing_is_heard_after_the_end(chat, tiny_tokenizer):
    ids = chat.reply(Message("assistant", "7", "so")) + tiny_tokenizer.encode(" and more")
    assert chat.parse(ids) == Message("assistant", "7", "so")


def test_thinking_streams_without_its_last_line_break(chat, tiny_tokenizer):
    stream = chat.stream()
    deltas = [stream.push(token) for token in chat.reply(Message("assistant", "7", "a\n\nb\n"))]
    assert all(not (d.content and d.reasoning_content) for d in deltas)
    said = [d.reasoning_content for d in deltas if d.reasoning_content]
    assert "".join(said) == "a\n\nb\n" and len(said) > 1


# Every format, both ways.

WITH_TOOLS = ["leanseek", "v3", "r1", "v31", "v32", "template"]


def fitted(chat: ChatFormat, message: Message) -> Message:
    """Return what of a message a format can say."""
    if not chat.thinks:
        message = replace(message, reasoning_content=None)
    return message if chat.has_tools else replace(message, tool_calls=())


def listened(chat: ChatFormat, ids: list[int], thinking: bool, cuts: set[int]) -> Message:
    """Return what the deltas of a stream say, taken in groups as a server would send them."""
    stream = chat.stream(starts_in_thinking=thinking)
    groups: list[list] = [[]]
    for place, token in enumerate(ids):
        groups[-1].append(stream.push(token))
        if place in cuts:
            groups.append([])
    groups[-1].append(stream.flush())
    content = reasoning = ""
    calls: list[ToolCall] = []
    for delta in (delta for group in groups for delta in group):
        content += delta.content
        reasoning += delta.reasoning_content
        for one in delta.tool_calls:
            if one.index == len(calls):
                assert one.id == f"call_{one.index}" and one.name
                calls.append(ToolCall(one.id, one.name, ""))
            else:
                assert one.index == len(calls) - 1 and one.id is None and one.name is None and one.arguments
            calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + one.arguments)
    return Message("assistant", content, reasoning if stream.thought else None, tuple(calls))


@pytest.mark.parametrize("name", FORMATS)
@given(message=assistant(ARGUMENTS), cuts=st.sets(st.integers(0, 60)))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_every_format_reads_back_what_it_writes(formats, name, message, cuts):
    chat = formats[name]
    message = fitted(chat, message)
    ids, thinking = chat.reply(message), message.reasoning_content is not None
    assert chat.parse(ids, starts_in_thinking=thinking) == message
    assert listened(chat, ids, thinking, cuts) == message


@pytest.mark.parametrize("name", ["leanseek", "v3", "r1", "v31", "template"])
@given(message=assistant(ANY_ARGUMENTS))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_arguments_may_be_any_text_where_calls_carry_text(formats, name, message):
    message = fitted(formats[name], message)
    thinking = message.reasoning_content is not None
    assert formats[name].parse(formats[name].reply(message), starts_in_thinking=thinking) == message


@pytest.mark.parametrize("name", [*FORMATS, "template that opens thinking"])
@given(message=assistant(ARGUMENTS))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_thinking_asked_for_and_not_given_is_told_apart_where_the_model_opens_it(formats, name, message):
    chat = formats[name]
    message = replace(fitted(chat, message), reasoning_content=None)
    said = chat.parse(chat.reply(message))
    if name in ("v2", "v3", "template"):
        assert said == message
    else:  # the prompt has opened it: all is thinking
        assert said.content == "" and not said.tool_calls and said.reasoning_content is not None


@st.composite
def broken_replies(draw, chat: ChatFormat) -> list[int]:
    """Draw ids such as a model gone astray gives: pieces of good replies, marks anywhere."""
    ids = chat.reply(fitted(chat, draw(assistant(ARGUMENTS)))) * 2
    marks = [i for i in chat.tokenizer.added_tokens if i != chat.tokenizer.eos_id]
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(ids)))
        change = draw(st.sampled_from(["cut", "mark", "tag", "drop"]))
        if change == "cut":
            ids = ids[:at]
        elif change == "mark":
            ids[at:at] = [draw(st.sampled_from(marks))]
        elif change == "tag":
            ids[at:at] = chat.tokenizer.encode(draw(st.sampled_from(PIECES)))
        else:
            del ids[at : at + draw(st.integers(1, 5))]
    return [i for i in ids if i != chat.tokenizer.eos_id]


@pytest.mark.parametrize("name", [*FORMATS, "template that opens thinking"])
@given(data=st.data(), thinking=st.booleans(), cuts=st.sets(st.integers(0, 60)))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_broken_replies_are_read_without_a_crash_and_alike_in_any_chunks(formats, name, data, thinking, cuts):
    chat = formats[name]
    ids = data.draw(broken_replies(chat))
    said = chat.parse(ids, starts_in_thinking=thinking)
    assert listened(chat, ids, thinking, cuts) == said
    said.content.encode()  # no mark is left in it
    (said.reasoning_content or "").encode()
    for call in said.tool_calls:
        call.arguments.encode()
        assert is_name(call.name)


@pytest.mark.parametrize("name", [*FORMATS, "template that opens thinking"])
@given(
    turns=st.lists(
        st.builds(Message, st.sampled_from(["system", "user"]), HOSTILE)
        | assistant(ARGUMENTS)
        | st.builds(Message, st.just("tool"), HOSTILE, tool_call_id=st.just("call_0")),
        max_size=5,
    ),
    description=HOSTILE,
    thinking=st.booleans(),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_text_becomes_a_special_token(formats, name, turns, description, thinking):
    """The marks of a prompt are the same whatever is said in it."""
    chat = formats[name]
    turns = [fitted(chat, message) for message in turns if chat.has_tools or message.role != "tool"]
    tools = [ToolSpec("f", description, {"properties": {description: {"type": "string"}}})] if chat.has_tools else []
    harmless = [
        replace(
            message,
            content="a" if message.content.strip() else message.content,
            reasoning_content=None
            if message.reasoning_content is None
            else "a"
            if message.reasoning_content.strip()
            else "",
            tool_calls=tuple(replace(call, arguments=blank(call.arguments)) for call in message.tool_calls),
        )
        for message in turns
    ]
    marks = [i for i in chat.prompt(turns, thinking=thinking, tools=tools) if i in chat.tokenizer.added_tokens]
    tools = [ToolSpec("f", "a", {})] if chat.has_tools else []
    usual = [i for i in chat.prompt(harmless, thinking=thinking, tools=tools) if i in chat.tokenizer.added_tokens]
    assert marks == usual


def blank(arguments: str) -> str:
    """Return arguments of as many parameters that say nothing."""
    return json.dumps({f"p{i}": "a" for i in range(len(json.loads(arguments)))})


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_a_call_streams_its_name_first(formats, name):
    chat = formats[name]
    arguments = '{"city": "a long name of a town", "days": 3}'
    message = Message("assistant", "so", None, (ToolCall("call_0", "f", arguments), ToolCall("call_1", "g", "{}")))
    stream = chat.stream(starts_in_thinking=False)
    deltas = [one for token in chat.reply(message) for one in stream.push(token).tool_calls]
    assert [(one.index, one.id, one.name) for one in deltas if one.name] == [(0, "call_0", "f"), (1, "call_1", "g")]
    assert [one.index for one in deltas] == sorted(one.index for one in deltas)
    if name != "template":  # which tells a call whole
        assert sum(one.index == 0 for one in deltas) > 5


def test_call_ids_are_the_callers(formats):
    message = Message("assistant", "", None, (ToolCall("x0", "f", "{}"), ToolCall("x1", "f", "{}")))
    ids = formats["v31"].reply(message)
    assert formats["v31"].parse(ids, starts_in_thinking=False, call_id=lambda i: f"x{i}") == message


def test_formats_are_chosen_by_name(tiny_tokenizer, make_tokenizer):
    with pytest.raises(ConfigError, match=r"chat format 'v13': accepted are leanseek, v2, .*; did you mean v3"):
        ChatFormat(tiny_tokenizer, "v13")
    with pytest.raises(CheckpointError, match="has no token '<think>'"):
        ChatFormat(make_tokenizer(lacks=("<think>",)), "r1")
    with pytest.raises(CheckpointError, match="has no chat_template"):
        ChatFormat(make_tokenizer(config={}), "template")
    assert ChatFormat(make_tokenizer(lacks=("<think>",)), "v3").think_id is None


# Each template's own way to open a reply, the rest left out.
THOUGHT = "{{ '<｜User｜>' }}{% if '</think>' in content %}{% endif %}"


@pytest.mark.parametrize(
    ("template", "model_type", "lacks", "name"),
    [
        (CHAT_TEMPLATE, "deepseek_v3", (), "leanseek"),
        (CHAT_TEMPLATE, "qwen3", (), "leanseek"),
        (None, None, (), "leanseek"),
        (None, "deepseek_v32", (), "v32"),
        (None, "deepseek_v3", ("<think>",), "v3"),
        (None, "deepseek_v2", (USER, ASSISTANT), "v2"),
        (None, "llama", tuple(SPECIAL_TOKENS[2:]), "v2"),
        ("{{ '<｜User｜>' ~ q ~ '<｜Assistant｜>' }}", "deepseek_v3", (), "v3"),
        (THOUGHT + "{{ '<｜Assistant｜><think>\\n' }}", "deepseek_v3", (), "r1"),
        (THOUGHT + "{{ '<｜Assistant｜>' }}", None, (), "r1"),
        (THOUGHT + "{{ '<｜Assistant｜>' }}", None, ("<think>", "</think>"), "v3"),
        (THOUGHT + "{{ '<｜Assistant｜>' }}{%- if  not\n thinking %}</think>{% endif %}", "deepseek_v32", (), "v31"),
        ("{{ 'User: ' ~ q ~ 'Assistant:' }}", "deepseek_v2", (USER, ASSISTANT), "v2"),
        (THOUGHT + "{{ '<｜Assistant｜><think>\\n' }}", "qwen2", (), "template"),
        (QWEN_TEMPLATE, "deepseek_v3", (), "template"),
        ("{{ messages }}", "qwen3", (BOS,), "template"),
    ],
)
def test_a_folder_says_its_format(make_tokenizer, template, model_type, lacks, name):
    config = {} if template is None else {"chat_template": template}
    files = {} if model_type is None else {"config__json": json.dumps({"model_type": model_type})}
    assert recognise(make_tokenizer(None, lacks, config, **files)) == name


def test_dsml_says_v32(make_tokenizer):
    assert recognise(make_tokenizer({DSML: False}, config={})) == "v32"


def test_a_format_is_loaded_from_a_folder(tmp_path, tiny_tokenizer):
    tiny_tokenizer.save(tmp_path)
    assert (ChatFormat.load(tmp_path).name, ChatFormat.load(tmp_path, "v31").name) == ("leanseek", "v31")


def test_tools_are_refused_where_the_format_has_none(formats):
    calls = (ToolCall("call_0", "f", "{}"),)
    for message in (Message("tool", "1"), Message("assistant", "", None, calls)):
        with pytest.raises(UsageError, match="the chat format v2 has no tools"):
            formats["v2"].prompt([message])
    with pytest.raises(UsageError, match="has no tools"):
        formats["v2"].prompt([], tools=[ToolSpec("f")])
    with pytest.raises(UsageError, match="the chat format v3 has no thinking"):
        formats["v3"].reply(Message("assistant", "a", "b"))


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_a_tools_name_must_be_one(formats, name):
    for bad in ("", "a b", 'a"', "a<", "\ud800"):
        with pytest.raises(UsageError, match="tool name"):
            formats[name].prompt([Message("user", "a")], tools=[ToolSpec(bad)])
        with pytest.raises(UsageError, match="tool name"):
            formats[name].reply(Message("assistant", "", None, (ToolCall("call_0", bad, "{}"),)))


@pytest.mark.parametrize("name", FORMATS)
def test_half_a_surrogate_pair_is_no_mark(formats, name):
    """The marks are surrogates, and JSON may bring one."""
    for code in (0xD800, 0xD801, 0xD805, 0xDC00, 0xDFFF):
        message = Message("assistant", f"a{chr(code)}b")
        said = formats[name].parse(formats[name].reply(message), starts_in_thinking=False)
        assert said == Message("assistant", "a\ufffdb")
        prompt = formats[name].prompt([Message("user", f"a{chr(code)}b")])
        assert prompt == formats[name].prompt([Message("user", "a\ufffdb")])


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_what_follows_a_reply_is_what_the_prompt_has_there(formats, name):
    chat = formats[name]
    calls = (ToolCall("call_0", "ring", "{}"), ToolCall("call_1", "ring", "{}"))
    results = [Message("tool", f"rung </think>{EOS} {i}", tool_call_id=f"call_{i}", name="ring") for i in range(2)]
    for said in (results, [Message("user", "and now?")]):
        called = Message("assistant", "so", None, calls if said is results else ())
        prompt = chat.prompt([Message("user", "go"), called, *said])
        tail = chat.following(said)
        assert tail and prompt[-len(tail) :] == tail and chat.tokenizer.eos_id == prompt[-len(tail) - 1]


@pytest.mark.parametrize("name", ["leanseek", "v32"])
def test_a_tool_loop_served_again_is_what_was_drawn(formats, name):
    """Thinking inside a loop stays in the prompt, so that serving and training show a model the same tokens."""
    chat = formats[name]
    tools = [ToolSpec("ring", "rings", {"type": "object", "properties": {}})]
    said = [Message("system", "Be brief."), Message("user", "go")]
    for i in range(2):
        said.append(Message("assistant", "", f"ring {i}", (ToolCall("call_0", "ring", "{}"),)))
        said.append(Message("tool", f"rung {i}", tool_call_id="call_0", name="ring"))
    ids, _ = chat.dialogue([*said, Message("assistant", "done", "all rung")], tools=tools)
    prompt = chat.prompt(said, tools=tools)
    assert ids[: len(prompt)] == prompt
    # Once the user speaks again, the loop's thinking is history and goes.
    later = chat.tokenizer.decode(chat.prompt([*said, Message("assistant", "done", "all"), Message("user", "more")]))
    assert "ring 0" not in later and "rung 0" in later
