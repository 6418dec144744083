"""Episodes of several replies: played by an expert, by hand, and as what training learns from."""

from __future__ import annotations

import itertools
import random

import pytest

from leanseek.engine.engine import Engine
from leanseek.engine.request import Output, SamplingParams
from leanseek.envs.environment import Environment, Episode, Problem, Turn, demonstrate
from leanseek.evals.attempts import attempt
from leanseek.messages import Message, ToolCall, ToolSpec
from leanseek.tokens.chat import ChatFormat
from leanseek.train.objectives.grpo import Group, GroupBatch, Grpo


class Bell(Environment):
    """Ring a bell `level` times with a tool, then say so."""

    name = "bell"
    description = "ring a bell"
    levels = (1, 2)
    tools = (ToolSpec("ring", "rings", {"type": "object", "properties": {}}),)
    multi_turn = True

    def draw(self, level: int, rng: random.Random) -> Problem:
        key = f"{level} {rng.randrange(10_000)}"
        return Problem(self.name, level, f"ring {key}", {"answer": level}, key)

    def solution(self, problem: Problem, rng: random.Random) -> Message:
        return self.start(problem).expert(rng)

    def check(self, problem: Problem, answer: str) -> bool:
        return answer == "done"

    def start(self, problem: Problem) -> Episode:
        return Ringing(self, problem)


class Ringing(Episode):
    def __init__(self, environment, problem):
        super().__init__(environment, problem)
        self.rung = 0

    def step(self, reply: Message) -> Turn:
        if reply.tool_calls:
            self.rung += 1
            result = Message("tool", f"rung {self.rung}", tool_call_id=reply.tool_calls[0].id, name="ring")
            return Turn((result,), False, {})
        right = self.rung == self.problem.level and reply.content == "done"
        return Turn((), True, {"correct": float(right), "format": 1.0})

    def expert(self, rng: random.Random) -> Message:
        if self.rung < self.problem.level:
            return Message("assistant", "", f"ring {self.rung + 1}", (ToolCall("call_0", "ring", "{}"),))
        return Message("assistant", "done", "all rung")


class Script:
    """An engine that says what an expert would; `later` is kept to look at."""

    def __init__(self, chat: ChatFormat, rounds: list[list[Message]]) -> None:
        self.chat, self.rounds, self.asked = chat, rounds, []

    def generate(self, prompts, params, *, on_progress=None):
        self.asked.append((list(map(list, prompts)), params))
        ids = [self.chat.reply(message) for message in self.rounds.pop(0)]
        return [Output(str(i), 0, one, "", [-0.5] * len(one)) for i, one in enumerate(ids)]


@pytest.fixture
def bell() -> Bell:
    return Bell()


def problem_of(bell: Bell, level: int) -> Problem:
    return next(bell.problems("train", 0, [level]))


def test_a_conversation_is_learnt_as_it_was_said(bell: Bell, tiny_tokenizer):
    chat = ChatFormat(tiny_tokenizer)
    problem = problem_of(bell, 2)
    said, turn = demonstrate(bell, problem, random.Random(0))
    assert [m.role for m in said] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert turn.done and turn.rewards["correct"] == 1.0
    ids, learnt = chat.dialogue(said, tools=bell.tools)
    runs = [
        [i for i, _ in run] for flag, run in itertools.groupby(zip(ids, learnt, strict=True), lambda x: x[1]) if flag
    ]
    assert runs == [chat.reply(m) for m in said if m.role == "assistant"]
    # Earlier thinking stays where it was: what a reply follows is all that was said.
    assert ids.count(chat.end_think_id) == 3


def test_an_episode_goes_on_until_it_is_over(bell: Bell, tiny_tokenizer):
    chat = ChatFormat(tiny_tokenizer)
    one, two = problem_of(bell, 1), problem_of(bell, 2)
    ring = Message("assistant", "", "so", (ToolCall("call_0", "ring", "{}"),))
    done = Message("assistant", "done", "so")
    script = Script(chat, [[ring, done, ring, ring], [done, ring, done], [done]])
    params = SamplingParams(n=2, seed=5, max_tokens=400, logprobs=0)
    found = attempt(script, [one, two], params, environments={"bell": bell})
    assert [a.correct for a in found] == [True, False, True, False]
    assert [len(a.turns) for a in found] == [2, 0, 3, 2]
    whole = found[2]
    assert script.asked[2][0] == [whole.prompt_ids + whole.output.token_ids[: -len(chat.reply(done))]]
    assert (
        whole.prompt_ids + whole.output.token_ids,
        [False] * len(whole.prompt_ids) + whole.sampled,
    ) == chat.dialogue([Message("user", two.prompt), *whole.messages], tools=bell.tools)
    assert [p == 0.0 for p in whole.output.logprobs] == [not flag for flag in whole.sampled]
    seeds = [p.seed + i for _, params in script.asked for p in params for i in range(p.n)]
    assert len(set(seeds)) == len(seeds)


def test_a_conversation_that_fills_its_room_is_cut_off(bell: Bell, tiny_tokenizer):
    chat = ChatFormat(tiny_tokenizer)
    ring = Message("assistant", "", "so", (ToolCall("call_0", "ring", "{}"),))
    room = len(chat.reply(ring)) + 3
    script = Script(chat, [[ring]])
    params = SamplingParams(max_tokens=room)
    [found] = attempt(script, [problem_of(bell, 2)], params, environments={"bell": bell})
    assert not found.correct and found.output.finish_reason == "length" and all(found.sampled)


def test_a_step_that_raises_or_a_reward_out_of_range_is_recorded(bell: Bell, tiny_tokenizer, monkeypatch):
    chat = ChatFormat(tiny_tokenizer)
    for value in (float("nan"), 2.0):
        monkeypatch.setattr(Ringing, "step", lambda self, reply, v=value: Turn((), True, {"correct": v}))
        script = Script(chat, [[Message("assistant", "x", "y")]])
        [found] = attempt(script, [problem_of(bell, 1)], SamplingParams(), environments={"bell": bell})
        assert not found.correct and "the reward correct" in found.error


def test_only_what_was_drawn_is_learnt_and_with_routing_of_every_token(tiny_model, tiny_tokenizer, bell, monkeypatch):
    class Talkative(Ringing):
        """Answers anything, three times."""

        def step(self, reply: Message) -> Turn:
            self.rung += 1
            return Turn((Message("user", "go on"),) if self.rung < 3 else (), self.rung == 3, {"correct": 0.0})

    monkeypatch.setattr(Bell, "start", lambda self, problem: Talkative(self, problem))
    monkeypatch.setattr(Bell, "tools", ())
    engine = Engine(tiny_model, tiny_tokenizer, max_batch=8, max_context_tokens=128, record_experts=True)
    ending = tuple(range(160, 320))
    params = SamplingParams(max_tokens=60, n=4, seed=1, logprobs=0, stop_token_ids=ending, supports=True)
    found = attempt(engine, [problem_of(bell, 1)], params, environments={"bell": bell})
    assert any(len(one.turns) == 3 for one in found)
    for one in found:
        tokens = len(one.prompt_ids) + len(one.output.token_ids)
        assert one.output.experts.shape[0] == tokens - 1
        assert len(one.output.logprobs) == len(one.output.supports) == len(one.output.token_ids)
    group = Group(
        found[0].prompt_ids,
        [one.output.token_ids for one in found],
        [one.output.logprobs for one in found],
        [1.0, -1.0, 0.5, -0.5],
        [one.output.experts for one in found],
        sampled=[one.sampled or [True] * len(one.output.token_ids) for one in found],
    )
    batch = GroupBatch([group])
    packed = batch.packed
    flags = [flag for reply in group.sampled for flag in reply]
    assert len(packed.targets_M) == sum(flags) == batch.reply_tokens < len(flags)
    pairs = [zip(one.output.token_ids, one.sampled or [True] * tokens, strict=False) for one in found]
    assert packed.targets_M.tolist() == [token for pair in pairs for token, drawn in pair if drawn]
    # What the trainer computes at those places is what the engine said when it drew them, as for a single reply.
    loss = Grpo(0.2, 0.28)(tiny_model, batch)
    assert loss.metrics["logprob_gap"] < 1e-4 and loss.metrics["routing_agreement"] == 1.0
