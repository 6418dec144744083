from __future__ import annotations

import io
import os
import signal

import pytest
from rich.console import Console

from leanseek.checkpoint.directory import save_model
from leanseek.cli import chat as chat_module
from leanseek.cli.chat import Conversation, interruptible, printable
from leanseek.cli.speaker import EngineSpeaker
from leanseek.engine.engine import Engine
from leanseek.engine.request import SamplingParams
from leanseek.errors import CheckpointError, EngineError, UsageError
from leanseek.messages import Message


def talk(conversation, *lines):
    """Type some lines; return what is shown. Lines that are exceptions are raised, the end is Ctrl-D."""
    typed = iter(lines)

    def read(prompt):
        line = next(typed, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    shown = io.StringIO()
    conversation.run(Console(file=shown, force_terminal=True, color_system="standard", width=200), read)
    return shown.getvalue()


@pytest.fixture
def engine(tiny_model, tiny_tokenizer):
    return Engine(tiny_model, tiny_tokenizer, max_batch=1)


def test_thinking_is_dimmed_and_the_history_kept(engine):
    params = SamplingParams(max_tokens=12, seed=3)
    conversation = Conversation(EngineSpeaker(engine, params), [Message("system", "be brief")], thinking=True)
    shown = talk(conversation, "start 5", "")
    assert [message.role for message in conversation.messages] == ["system", "user", "assistant"]
    reply = conversation.messages[-1]
    assert reply.reasoning_content
    assert "\x1b[2m" in shown
    expected = engine.generate([engine.chat.prompt(conversation.messages[:2])], params)[0]
    assert reply == engine.chat.parse(expected.token_ids)


def test_without_thinking_the_answer_is_plain(engine):
    conversation = Conversation(EngineSpeaker(engine, SamplingParams(max_tokens=12, seed=4)), [], thinking=False)
    shown = talk(conversation, "start 5 +3")
    reply = conversation.messages[-1]
    assert reply.reasoning_content is None
    assert reply.content
    assert "\x1b[2m" not in shown


def test_the_same_seed_gives_the_same_conversation_of_different_replies(engine):
    replies = []
    for _ in range(2):
        conversation = Conversation(EngineSpeaker(engine, SamplingParams(max_tokens=12, seed=3)), [], thinking=True)
        talk(conversation, "start 5", "/clear", "start 5")
        first, *_ = conversation.messages[1:]
        replies.append(first)
    assert replies[0] == replies[1]
    once = Conversation(EngineSpeaker(engine, SamplingParams(max_tokens=12, seed=3)), [], thinking=True)
    talk(once, "start 5")
    assert once.messages[1] != replies[0]


@pytest.mark.parametrize("ending", ["/exit", EOFError(), KeyboardInterrupt()])
def test_leaving(engine, ending):
    conversation = Conversation(EngineSpeaker(engine, SamplingParams(max_tokens=3)), [], thinking=True)
    talk(conversation, "/help", ending, "never read")
    assert conversation.messages == []


def test_ctrl_c_stops_the_reply_and_keeps_what_was_said(engine, monkeypatch):
    steps = 0
    step = engine.step

    def counting():
        nonlocal steps
        steps += 1
        if steps == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return step()

    monkeypatch.setattr(engine, "step", counting)
    conversation = Conversation(
        EngineSpeaker(engine, SamplingParams(max_tokens=100, ignore_eos=True)), [], thinking=True
    )
    talk(conversation, "start 5")
    assert steps == 4
    assert not engine.has_work
    assert len(conversation.messages) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_leaves():
    with pytest.raises(KeyboardInterrupt), interruptible() as interrupted:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted.is_set()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_conversation_that_is_too_long_is_told(engine):
    conversation = Conversation(EngineSpeaker(engine, SamplingParams(max_tokens=5)), [], thinking=True)
    assert "/clear" in talk(conversation, "a b " * 200)
    assert conversation.messages == []


def test_text_cannot_steer_the_terminal():
    assert printable("a\x1b[31m\r\x07\tb\n\x9bé🙂") == "a�[31m��\tb\n�é🙂"


def test_chat_opens_a_folder(tmp_path, tiny_model, tiny_tokenizer, monkeypatch, capsys):
    save_model(tiny_model, tmp_path / "model", tiny_tokenizer)
    typed = iter(["start 5", "/exit"])
    monkeypatch.setattr(Conversation.run, "__defaults__", (lambda prompt: next(typed),))
    chat_module.chat(str(tmp_path / "model"), temperature=0, max_tokens=6, system="be brief")
    out, err = capsys.readouterr()
    assert out.strip()
    assert "loading" in err


def test_chat_refuses(tmp_path, tiny_model, tiny_tokenizer):
    with pytest.raises(CheckpointError, match="no such folder"):
        chat_module.chat(str(tmp_path / "missing"))
    save_model(tiny_model, tmp_path / "model", tiny_tokenizer)
    with pytest.raises(EngineError, match="temperature = -1"):
        chat_module.chat(str(tmp_path / "model"), temperature=-1)
    for options in ({"name": "laptop"}, {"api_key_file": tmp_path}):
        with pytest.raises(UsageError, match="go with the URL of a server"):
            chat_module.chat(str(tmp_path / "model"), **options)
    with pytest.raises(UsageError, match="are the server's to choose"):
        chat_module.chat("http://127.0.0.1:1", weights="bf16")
    with pytest.raises(UsageError, match="the API key cannot be read"):
        chat_module.chat("http://127.0.0.1:1", api_key_file=tmp_path / "none")
