from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import pytest

from leanseek.engine.engine import Engine
from leanseek.engine.request import Output, SamplingParams
from leanseek.envs.environment import Problem, environments, load_environment
from leanseek.envs.largest import Largest
from leanseek.envs.running_total import RunningTotal
from leanseek.envs.worlds.world import WAYS
from leanseek.errors import EngineError, TaskError
from leanseek.evals.attempts import attempt, is_sound
from leanseek.messages import Message, ToolCall
from leanseek.model.transformer import Transformer
from leanseek.tokens.chat import ChatFormat
from leanseek.tokens.tokenizer import Tokenizer

TASKS = {"running_total": RunningTotal(), "largest": Largest()}


@dataclass
class Scripted:
    """An engine whose replies are given."""

    chat: ChatFormat
    replies: list[Message]
    asked: list = field(default_factory=list)
    error: str | None = None

    def generate(self, prompts, params, *, on_progress=None):
        self.asked.append((prompts, params))
        outputs = []
        for name, one in enumerate(params):
            for index in range(one.n):
                ids = self.chat.reply(self.replies[len(outputs)])
                outputs.append(Output(str(name), index, ids, "", error=self.error))
        if on_progress is not None:
            on_progress(len(outputs))
        return outputs


def problems(count: int) -> list[Problem]:
    sources = [task.problems("train", 0) for task in TASKS.values()]
    return [next(source) for source in itertools.islice(itertools.cycle(sources), count)]


def answer(problem: Problem) -> Message:
    return Message("assistant", str(problem.data["answer"]), "so")


def test_replies_are_scored_each_problem_side_by_side(tiny_tokenizer: Tokenizer):
    chosen = problems(2)
    replies = [
        answer(chosen[0]),
        Message("assistant", "nothing", "so"),
        Message("assistant", "", "so"),
        answer(chosen[1]),
    ]
    engine = Scripted(ChatFormat(tiny_tokenizer), replies)
    done: list[int] = []
    found = attempt(engine, chosen, SamplingParams(n=2, seed=7), environments=TASKS, on_progress=done.append)
    assert [one.problem for one in found] == [chosen[0], chosen[0], chosen[1], chosen[1]]
    assert [one.correct for one in found] == [True, False, False, True]
    assert [one.formed for one in found] == [True, True, False, True]
    assert [one.reply for one in found] == replies and done == [4]
    assert [one.rewards["correct"] for one in found] == [1.0, 0.0, 0.0, 1.0]
    assert all(one.error is None for one in found)
    prompts, params = engine.asked[0]
    assert prompts == [engine.chat.prompt([Message("user", p.prompt)]) for p in chosen]
    assert found[0].prompt_ids is found[1].prompt_ids and found[2].prompt_ids == prompts[1]
    # No two replies may share their luck.
    assert [one.seed for one in params] == [7, 9]


def test_a_checker_that_raises_costs_its_attempt_alone(tiny_tokenizer: Tokenizer):
    class Faulty(RunningTotal):
        def check(self, problem: Problem, text: str) -> bool:
            if text == "boom":
                raise ZeroDivisionError("no such luck")
            return super().check(problem, text)

        def audit(self, problem: Problem, reasoning: str) -> bool:
            raise ValueError

    chosen = problems(1)
    engine = Scripted(ChatFormat(tiny_tokenizer), [Message("assistant", "boom", "so"), answer(chosen[0])])
    task = Faulty()
    found = attempt(engine, chosen, SamplingParams(n=2), environments={"running_total": task})
    assert [one.correct for one in found] == [False, True]
    assert found[0].error == "ZeroDivisionError: no such luck" and not found[0].formed and found[1].error is None
    assert not is_sound(task, found[1])


def test_a_reply_that_the_engine_broke_off_is_wrong(tiny_tokenizer: Tokenizer):
    chosen = problems(1)
    engine = Scripted(ChatFormat(tiny_tokenizer), [answer(chosen[0])], error="not finite")
    [one] = attempt(engine, chosen, SamplingParams(), environments=TASKS)
    assert (one.correct, one.formed, one.error) == (False, False, "not finite")


def test_sound_thinking_is_told_from_unsound(tiny_tokenizer: Tokenizer):
    chosen = problems(1)
    gold = TASKS["running_total"].solution(chosen[0], random.Random(0))
    engine = Scripted(ChatFormat(tiny_tokenizer), [gold, answer(chosen[0])])
    found = attempt(engine, chosen, SamplingParams(n=2), environments=TASKS)
    assert [is_sound(TASKS["running_total"], one) for one in found] == [True, False]


def test_an_engine_answers_the_same_alone_and_among_others(tiny_model: Transformer, tiny_tokenizer: Tokenizer):
    engine = Engine(tiny_model, tiny_tokenizer, max_batch=8)
    chosen = problems(3)
    params = SamplingParams(max_tokens=8, n=2, seed=3, logprobs=0)
    found = attempt(engine, chosen, params, environments=TASKS)
    assert len(found) == 6 and len({tuple(one.output.token_ids) for one in found}) > 3
    alone = attempt(engine, chosen[:1], params, environments=TASKS)
    assert [one.output.token_ids for one in alone] == [one.output.token_ids for one in found[:2]]
    assert len(found[0].output.logprobs or []) == len(found[0].output.token_ids)


def test_what_cannot_be_attempted_is_refused(tiny_model: Transformer, tiny_tokenizer: Tokenizer):
    with pytest.raises(EngineError, match="no tokenizer"):
        attempt(Engine(tiny_model), problems(1), SamplingParams(), environments=TASKS)
    with pytest.raises(TaskError, match="environment 'largest'; given are running_total"):
        engine = Engine(tiny_model, tiny_tokenizer)
        attempt(engine, problems(2), SamplingParams(), environments={"running_total": TASKS["running_total"]})


def broken_replies(chat: ChatFormat) -> list[list[int]]:
    """Return ids such as a model gone astray draws: noise, marks alone, calls in calls, text that is no text."""
    rng = random.Random(0)
    vocabulary = chat.tokenizer.vocab_size
    marks = list(chat.tokenizer.added_tokens)
    end = [chat.tokenizer.id_of("</think>")]
    call = chat.reply(Message("assistant", "", "so", (ToolCall("call_0", "python", '{"code": "1"}'),)))
    said = [
        "\x00" * 50,
        "9" * 5000,
        "\ud800".encode("utf-8", "replace").decode(),
        "(" * 3000,
        "{" * 3000,
        "\u202e<think>",
    ]
    return [
        [],
        marks * 5,
        call[:-1] * 4,
        call[: len(call) // 2],
        *([rng.randrange(vocabulary) for _ in range(300)] for _ in range(3)),
        *(end + [rng.randrange(vocabulary) for _ in range(300)] for _ in range(3)),
        *(end + chat.tokenizer.encode(text) for text in said),
    ]


WORLDS = ("battery_swap", "delivery_drone", "smart_home")


@pytest.mark.parametrize("name", [*environments(adapters=False), *(f"{n}:{way}" for n in WORLDS for way in WAYS[1:])])
def test_hostile_replies_score_nothing_and_stop_nothing_in_any_environment(name: str, tiny_tokenizer: Tokenizer):
    task = load_environment(name)
    chat = ChatFormat(tiny_tokenizer)
    broken = broken_replies(chat)

    class Astray:
        def __init__(self) -> None:
            self.chat, self.left = chat, [list(broken)]

        def generate(self, prompts, params, *, on_progress=None):
            ids = self.left.pop() if self.left else [[] for _ in prompts]
            return [Output(str(i), 0, one, "") for i, one in enumerate(ids)]

    problem = next(task.problems("train", 0))
    params = SamplingParams(n=len(broken), max_tokens=20_000)
    found = attempt(Astray(), [problem], params, environments={task.name: task})
    assert len(found) == len(broken) and not any(one.correct for one in found)
    assert {one.error for one in found} == {None}
