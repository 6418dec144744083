"""The chat format: what is rendered is parsed back, streamed or whole, and only the reply is learnt."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanseek.errors import UsageError
from leanseek.messages import Message
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.tokenizer import ASSISTANT, BOS, END_THINK, EOS, THINK, USER

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
