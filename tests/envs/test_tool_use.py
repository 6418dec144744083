from __future__ import annotations

import json
import random

import pytest

from leanseek.envs.environment import demonstrate, play
from leanseek.envs.sandbox import usable
from leanseek.envs.tool_use import MOST_CALLS, MOST_REPLIES, ToolUse
from leanseek.messages import Message, ToolCall
from leanseek.tokens.chat import ChatFormat


@pytest.fixture
def task() -> ToolUse:
    return ToolUse()


def call(name: str, **arguments: object) -> ToolCall:
    return ToolCall("call_0", name, json.dumps(arguments))


def results(task: ToolUse, *calls: ToolCall) -> list[str]:
    turn = task.start(next(task.problems("train", 0))).step(Message("assistant", "", "so", calls))
    assert not turn.done
    return [message.content for message in turn.messages]


def test_an_expert_calls_reads_and_answers(task: ToolUse):
    for level, turns in ((1, 2), (2, 3)):
        problem = next(task.problems("train", 0, [level]))
        said, turn = demonstrate(task, problem, random.Random(0))
        assert turn.rewards == {"correct": 1.0, "format": 1.0}
        assert sum(message.role == "assistant" for message in said) == turns
        assert said[-1].content == str(problem.data["answer"])


def test_tools_give_results_or_say_what_is_wrong(task: ToolUse):
    assert results(task, call("calculator", expression="2^10 / 4")) == ["256"]
    assert results(task, call("calculator", expression="9^9^9")) == [
        "error: no expression of numbers, or one too large"
    ]
    assert results(task, call("calculator")) == ["error: expression is missing or too long"]
    assert results(task, ToolCall("call_0", "python", "{")) == ["error: the arguments are no JSON object"]
    assert results(task, call("python")) == ["error: code is missing"]
    assert results(task, call("shell", code="ls"))[0].startswith("error: there is no such tool")
    many = results(task, *[call("calculator", expression="1")] * (MOST_CALLS + 2))
    assert many == ["1"] * MOST_CALLS + ["error: too many calls"] * 2


def test_python_runs_in_the_sandbox(task: ToolUse):
    if why := usable():
        pytest.skip(f"bubblewrap is needed: {why}")
    assert results(task, call("python", code="print(sum(range(10)))")) == ["45"]
    [said] = results(task, call("python", code="1/0"))
    assert said.startswith("error (failed)") or "ZeroDivisionError" in said
    assert len(results(task, call("python", code="print('x' * 10**5)"))[0]) <= 500


def test_calling_without_end_and_answering_without_thinking_score_nothing(task: ToolUse):
    problem = next(task.problems("train", 0, [1]))
    ring = Message("assistant", "", "so", (call("calculator", expression="1"),))
    said, turn = play(task.start(problem), lambda: ring)
    assert turn.done and turn.rewards["correct"] == 0.0
    assert sum(message.role == "assistant" for message in said) == MOST_REPLIES
    gold = str(problem.data["answer"])
    assert task.start(problem).step(Message("assistant", gold, "so")).rewards["correct"] == 1.0
    assert task.start(problem).step(Message("assistant", gold)).rewards == {"correct": 0.0, "format": 0.0}
    assert task.start(problem).step(Message("assistant", gold + "0", "so")).rewards == {"correct": 0.0, "format": 1.0}


def test_a_loop_is_learnt_with_its_thinking_and_without_its_results(task: ToolUse, tiny_tokenizer):
    chat = ChatFormat(tiny_tokenizer)
    said, _ = demonstrate(task, next(task.problems("train", 0, [2])), random.Random(0))
    ids, learnt = chat.dialogue(said, tools=task.tools)
    taught = tiny_tokenizer.decode([token for token, flag in zip(ids, learnt, strict=True) if flag])
    assert "first the product" in taught and "now with the result" in taught
    assert sum(learnt) == sum(len(chat.reply(m)) for m in said if m.role == "assistant")
