from __future__ import annotations

import random

import pytest

from leanseek.engine.request import Event
from leanseek.messages import Message, ToolCall
from leanseek.server.reply import Reply, Said, _open_end, whole_calls
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.tokenizer import Tokenizer


def follow(reply: Reply, ids: list[int], reason: str | None = "length") -> list[Said]:
    """Push tokens, the last one with a finish reason."""
    last = len(ids) - 1
    return [reply.push(Event("r", 0, token, -float(i), reason if i == last else None)) for i, token in enumerate(ids)]


def reply_ids(tokenizer: Tokenizer, thinking: str, answer: str) -> list[int]:
    chat = ChatFormat(tokenizer)
    return [*tokenizer.encode(thinking + "\n"), chat.end_think_id, *tokenizer.encode(answer), tokenizer.eos_id]


def test_thinking_and_answer_are_apart(tiny_tokenizer):
    reply = Reply(ChatFormat(tiny_tokenizer), (), thinking=True)
    ids = reply_ids(tiny_tokenizer, "größer: 2\n\n+3 =5", "5 ≥ 4 🙂")
    said = Said.joined(follow(reply, ids, "stop"))
    assert said.reasoning_content == "größer: 2\n\n+3 =5"
    assert said.content == "5 ≥ 4 🙂"
    assert reply.finish_reason == "stop"
    assert reply.tokens == len(ids)
    assert reply.reasoning_tokens == ids.index(ChatFormat(tiny_tokenizer).end_think_id)


def test_without_thinking_all_is_answer(tiny_tokenizer):
    reply = Reply(ChatFormat(tiny_tokenizer), (), thinking=False)
    said = Said.joined(follow(reply, [*tiny_tokenizer.encode("total 5\n"), tiny_tokenizer.eos_id], "stop"))
    assert (said.content, said.reasoning_content) == ("total 5\n", "")
    assert reply.reasoning_tokens == 0


def test_thinking_that_never_ends_is_no_answer(tiny_tokenizer):
    reply = Reply(ChatFormat(tiny_tokenizer), (), thinking=True)
    ids = tiny_tokenizer.encode("the answer of")
    said = Said.joined(follow(reply, ids))
    assert (said.content, said.reasoning_content) == ("", "the answer of")
    assert (reply.finish_reason, reply.reasoning_tokens) == ("length", len(ids))


def test_a_character_cut_by_the_limit_is_told_with_its_last_token(tiny_tokenizer):
    ids = tiny_tokenizer.encode("a🙂")[:-1]
    said = Said.joined(follow(Reply(ChatFormat(tiny_tokenizer), (), thinking=False), ids))
    assert said.content.startswith("a�")
    assert "".join(text for text, *_ in said.content_logprobs) == said.content


@pytest.mark.parametrize(
    ("stop", "reasoning", "content"),
    [
        (("7",), "a 5 +2 =", ""),
        (("=7",), "a 5 +2 ", ""),
        (("7\n",), "a 5 +2 =", ""),
        (("\n",), "a 5 +2 =7", ""),
        (("\nthe",), "a 5 +2 =7", ""),  # begins in the thinking's last line break and ends in the answer
        (("7\nthe an",), "a 5 +2 =", ""),
        (("total",), "a 5 +2 =7", "the answer "),
        ((" total", "answer"), "a 5 +2 =7", "the "),
        (("nowhere", "totals"), "a 5 +2 =7", "the answer total"),
        (("the answer total",), "a 5 +2 =7", ""),
    ],
)
def test_stop_texts_are_cut_out(tiny_tokenizer, stop, reasoning, content):
    reply = Reply(ChatFormat(tiny_tokenizer), stop, thinking=True)
    ids = reply_ids(tiny_tokenizer, "a 5 +2 =7", "the answer total")
    said = Said.joined(follow(reply, ids, "stop"))
    assert (said.reasoning_content, said.content) == (reasoning, content)
    assert reply.finish_reason == "stop"


def test_a_stop_text_at_the_limit_is_a_stop(tiny_tokenizer):
    reply = Reply(ChatFormat(tiny_tokenizer), ("total",), thinking=False)
    assert Said.joined(follow(reply, tiny_tokenizer.encode("the total"), "length")).content == "the "
    assert reply.finish_reason == "stop"


def test_random_tokens_never_show_a_stop_text(tiny_tokenizer):
    """Against a reference that reads the whole reply at once, as the engine does."""
    rng = random.Random(0)
    chat = ChatFormat(tiny_tokenizer)
    alphabet = [*tiny_tokenizer.encode("aab\n🙂 total"), chat.end_think_id]
    cuts = 0
    for _ in range(400):
        ids = rng.choices(alphabet, k=rng.randint(1, 12))
        stops = tuple("".join(rng.choices("ab\n 🙂", k=rng.randint(1, 3))) for _ in range(rng.randint(1, 3)))
        thinking = rng.random() < 0.7
        border = ids.index(chat.end_think_id) if thinking and chat.end_think_id in ids else None
        texts, decoder = [], tiny_tokenizer.incremental()
        for place, token in enumerate(ids):
            texts.append(decoder.flush() if place == border else decoder.push(token))
            if any(stop in "".join(texts) for stop in stops):
                break
        else:
            texts.append(decoder.flush())
        whole = "".join(texts)
        cut = min((whole.find(stop) for stop in stops if stop in whole), default=len(whole))
        cuts += cut < len(whole)
        split = len("".join(texts[: border + 1])) if border is not None else len(whole) if thinking else 0
        reasoning = whole[: min(cut, split)].removesuffix("\n") if thinking else ""
        parts = follow(Reply(chat, stops, thinking=thinking), ids)
        said = Said.joined(parts)
        assert (said.reasoning_content, said.content) == (reasoning, whole[split:cut]), (ids, stops)
        assert "".join(text for text, *_ in said.content_logprobs) == said.content
        assert "".join(text for text, *_ in said.reasoning_logprobs) == said.reasoning_content
    assert 100 < cuts < 400


def test_text_is_held_back_no_longer_than_needed(tiny_tokenizer):
    reply = Reply(ChatFormat(tiny_tokenizer), ("aaab",), thinking=False)
    a, b = tiny_tokenizer.encode("a") + tiny_tokenizer.encode("b")
    shown = [reply.push(Event("r", 0, token)).content for token in [a, a, a, a, b]]
    assert shown == ["", "", "", "a", ""]  # the fourth a cannot be the stop's first
    assert reply.finish_reason == "stop"


def test_after_the_end_nothing_is_said(tiny_tokenizer):
    reply = Reply(ChatFormat(tiny_tokenizer), ("a",), thinking=False)
    follow(reply, tiny_tokenizer.encode("a"), None)
    assert reply.push(Event("r", 0, tiny_tokenizer.encode("b")[0], None, "length")) == Said()
    assert (reply.finish_reason, reply.tokens) == ("stop", 1)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [("xab", ("abc",), 2), ("xabc", ("abc",), 0), ("aaa", ("aab",), 2), ("x", ("x",), 0), ("", ("ab",), 0)],
)
def test_open_end(text, stops, expected):
    assert _open_end(text, stops) == expected


def call_ids(tokenizer: Tokenizer, thinking: str | None = None) -> list[int]:
    calls = (ToolCall("", "now", '{"at": 5}'), ToolCall("", "then", "{}"))
    return ChatFormat(tokenizer).reply(Message("assistant", "so", thinking, calls))


@pytest.mark.parametrize("thinking", [None, "hm"])
def test_tool_calls(tiny_tokenizer, thinking):
    reply = Reply(ChatFormat(tiny_tokenizer), (), thinking=thinking is not None, call_id=lambda at: f"c{at}")
    said = Said.joined(follow(reply, call_ids(tiny_tokenizer, thinking), "stop"))
    assert (said.content, said.reasoning_content) == ("so", thinking or "")
    calls = [ToolCall("c0", "now", '{"at": 5}'), ToolCall("c1", "then", "{}")]
    assert whole_calls(said.tool_calls) == calls
    assert (reply.finish_reason, reply.calls) == ("tool_calls", 2)
    assert reply.done() == (thinking or "", calls)
    assert "".join(one.text for one in said.content_logprobs) == "so"


def test_a_stop_text_may_cut_a_call_off(tiny_tokenizer):
    reply = Reply(ChatFormat(tiny_tokenizer), ("5}",), thinking=False)
    said = Said.joined(follow(reply, call_ids(tiny_tokenizer), "stop"))
    (call,) = whole_calls(said.tool_calls)
    assert (call.name, call.arguments) == ("now", '{"at": ')
    assert (reply.finish_reason, reply.stopped_by) == ("stop", "5}")


def test_without_tools_a_call_is_text(tiny_tokenizer):
    reply = Reply(ChatFormat(tiny_tokenizer), (), thinking=False, tools=False)
    said = Said.joined(follow(reply, call_ids(tiny_tokenizer), "stop"))
    assert (said.tool_calls, reply.finish_reason) == ([], "stop")
    assert said.content == 'sonow{"at": 5}then{}'


def test_plain_text_knows_no_marks(tiny_tokenizer):
    chat = ChatFormat(tiny_tokenizer)
    reply = Reply(chat, (), thinking=False, plain=True)
    ids = [*tiny_tokenizer.encode("a\n"), chat.end_think_id, *tiny_tokenizer.encode("b🙂")]
    said = Said.joined(follow(reply, ids))
    assert (said.content, said.reasoning_content) == ("a\nb🙂", "")


def test_a_reply_that_the_server_ends(tiny_tokenizer):
    reply = Reply(ChatFormat(tiny_tokenizer), ("answer",), thinking=False)
    for token in tiny_tokenizer.encode("the an"):
        reply.push(Event("r", 0, token, -1.0))
    said = reply.end("insufficient_system_resource")
    assert said.content.endswith("an")
    assert reply.finish_reason == "insufficient_system_resource"
    assert reply.end("stop") == Said()
