"""Replays: what was said comes back in the very tokens it was said in."""

from __future__ import annotations

import random

import pytest

from leanseek.errors import CheckpointError
from leanseek.messages import Message
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.replay import Replays


def said_oddly(tokenizer, text: str) -> list[int]:
    """Encode a text character by character, as no tokenizer would."""
    return [token for character in text for token in tokenizer.encode(character)]


def test_history_is_read_back_as_it_was_sampled(tiny_tokenizer):
    chat = ChatFormat(tiny_tokenizer)
    chat.replays = Replays(tiny_tokenizer)
    question = [Message("user", "start 5\nstep +2")]
    thinking = said_oddly(tiny_tokenizer, "step start total\n")
    answer = said_oddly(tiny_tokenizer, "the largest number")
    reply = [*thinking, chat.end_think_id, *answer, tiny_tokenizer.eos_id]
    prompt = chat.prompt(question)
    chat.replays.remember(reply)
    message = chat.parse(reply)
    assert message == Message("assistant", "the largest number", "step start total")
    again = chat.prompt([*question, message, Message("user", "and now?")], thinking=False)
    assert (
        again[: len(prompt) - 1 - len(tiny_tokenizer.encode("\n"))] == prompt[: -1 - len(tiny_tokenizer.encode("\n"))]
    )
    joined = "".join(map(chr, again))
    assert "".join(map(chr, answer)) in joined, "the answer, token by token"
    assert chat.reply(message) == reply
    plain = ChatFormat(tiny_tokenizer)
    assert plain.reply(message) != reply and plain.parse(plain.reply(message)) == message


def test_only_what_encoding_would_not_give_is_remembered(tiny_tokenizer):
    replays = Replays(tiny_tokenizer)
    replays.remember([*tiny_tokenizer.encode("start total"), tiny_tokenizer.eos_id])
    assert len(replays) == 0 and replays.find("start total") is None
    odd = said_oddly(tiny_tokenizer, "start total")
    replays.remember([tiny_tokenizer.eos_id, *odd, tiny_tokenizer.eos_id, *odd])
    assert len(replays) == 1 and replays.find("start total") == odd


def test_no_special_token_comes_back(tiny_tokenizer):
    rng, replays = random.Random(0), Replays(tiny_tokenizer)
    for _ in range(200):
        replays.remember([rng.randrange(320) for _ in range(rng.randint(1, 12))])
    assert len(replays) > 0
    assert not any(tiny_tokenizer.is_special(token) for ids in replays._ids.values() for token in ids)


def test_the_oldest_go_first_and_the_file_keeps_the_rest(tiny_tokenizer, tmp_path):
    path = tmp_path / "replays.jsonl"
    replays = Replays(tiny_tokenizer, path, most=2)
    texts = ["start one", "total two", "largest three"]
    for text in texts:
        replays.remember(said_oddly(tiny_tokenizer, text))
    with path.open("a") as file:
        file.write('["cut off')
    again = Replays(tiny_tokenizer, path, most=2)
    assert [again.find(text) is not None for text in texts] == [False, True, True]
    again.remember(said_oddly(tiny_tokenizer, texts[0]))
    assert Replays(tiny_tokenizer, path, most=9).find(texts[0]) == said_oddly(tiny_tokenizer, texts[0])


@pytest.mark.parametrize("line", ["{}", '["a", 3]', '["a", [99999]]', '["a", [1]]', "[3, [50]]", "\ud800", "null"])
def test_a_line_that_is_none_is_passed_over(tiny_tokenizer, tmp_path, line):
    path = tmp_path / "replays.jsonl"
    path.write_bytes(line.encode("utf-8", "surrogatepass") + b"\n")
    assert len(Replays(tiny_tokenizer, path)) == 0


def test_a_place_that_cannot_be_read_is_named(tiny_tokenizer, tmp_path):
    with pytest.raises(CheckpointError, match="cannot be used"):
        (tmp_path / "file").mkdir()
        (tmp_path / "file").chmod(0o000)
        Replays(tiny_tokenizer, tmp_path / "file" / ("x" * 300))
