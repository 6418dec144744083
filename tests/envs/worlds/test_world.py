"""The three worlds: experts win, random play does not, hostile replies end at nothing."""

from __future__ import annotations

import importlib.util
import itertools
import random

import pytest

from leanseek.envs.environment import demonstrate, load_environment
from leanseek.envs.validate import validate
from leanseek.envs.worlds.skills import tool_call
from leanseek.envs.worlds.world import WAYS, World
from leanseek.errors import TaskError
from leanseek.messages import Message, ToolCall


@pytest.fixture(params=["battery_swap", "delivery_drone", "smart_home"])
def name(request) -> str:
    if request.param == "battery_swap" and importlib.util.find_spec("mujoco") is None:
        pytest.skip("battery_swap needs the package mujoco (extra worlds)")
    return request.param


@pytest.mark.parametrize("way", WAYS)
def test_worlds_keep_what_tasks_promise_in_every_way_of_calling(name: str, way: str):
    assert validate(load_environment(f"{name}:{way}"), 10) == []


def test_an_expert_wins_every_problem_and_random_play_next_to_none(name: str):
    world, rng = load_environment(name), random.Random(1)
    assert isinstance(world, World)
    wins, games = 0, 0
    for problem in itertools.islice(world.problems("test", 5), 20):
        said, turn = demonstrate(world, problem, rng)
        assert turn.done and turn.rewards == {"correct": 1.0, "format": 1.0, "progress": 1.0}, said
        for _ in range(5):
            state = world.open(problem)
            for _ in range(world.most_calls):
                if state.over:
                    break
                state.act(world.random_call(rng))
            wins, games = wins + state.won, games + 1
    assert games == 100 and wins < 0.05 * games


def test_there_are_thousands_of_problems(name: str):
    world = load_environment(name)
    for level in world.levels:
        keys = {problem.key for problem in itertools.islice(world.problems("train", 3, [level]), 50)}
        assert len(keys) >= 49


def test_the_split_of_a_problem_does_not_depend_on_how_skills_are_called(name: str):
    worlds = [load_environment(f"{name}:{way}") for way in WAYS]
    firsts = [[p.prompt for p in itertools.islice(world.problems("test", 0), 8)] for world in worlds]
    assert firsts[0] == firsts[1] == firsts[2]
    assert [bool(world.tools) for world in worlds] == [True, False, False]


def test_calls_without_end_are_cut_off(name: str):
    world = load_environment(name)
    episode = world.start(next(world.problems("train", 0)))
    reply = Message("assistant", "", "", (ToolCall("a", "nothing", "{}"),))
    turns = 1
    while not episode.step(reply).done:
        turns += 1
    assert turns == world.most_calls
    flood = world.start(next(world.problems("train", 0))).step(Message("assistant", "", "", reply.tool_calls * 10_000))
    assert flood.done and flood.rewards["correct"] == 0.0


@pytest.mark.parametrize(
    "arguments",
    [
        '{"x": {"name": "fly", "arguments": "{}"}, "y": 1}',  # a call in a call
        '{"x": ' * 40 + "1" + "}" * 40,
        "[" * 100_000,
        '{"x": "' + "9" * 1_000_000 + '"}',
        "\x00\xff\ud800",
    ],
)
def test_hostile_arguments_are_answered_and_the_episode_goes_on(name: str, arguments: str):
    world = load_environment(name)
    problem = next(world.problems("train", 0))
    episode, rng = world.start(problem), random.Random(0)
    calls = tuple(ToolCall(str(i), skill.name, arguments) for i, skill in enumerate(world.skills))
    turn = episode.step(Message("assistant", "", "", calls))
    assert not turn.done and turn.rewards == {"correct": 0.0, "format": 0.0, "progress": 0.0}
    assert all(len(message.content) < 200 for message in turn.messages)
    fresh = world.start(problem)
    while not (turn := fresh.step(fresh.expert(rng))).done:
        pass
    assert turn.rewards["correct"] == 1.0


def test_a_reply_without_a_call_gives_up(name: str):
    world = load_environment(name)
    turn = world.start(next(world.problems("train", 0))).step(Message("assistant", "I am done", "so"))
    assert turn.done and turn.rewards == {"correct": 0.0, "format": 0.0, "progress": 0.0}


def test_calls_are_read_back_from_replies(name: str):
    world, rng = load_environment(name), random.Random(0)
    problem = next(world.problems("train", 0))
    said, _ = demonstrate(world, problem, rng)
    wanted = [step.call for step in world.expert(problem)]
    assert world.calls_of([message for message in said if message.role == "assistant"]) == wanted
    plan = load_environment(f"{name}:plan")
    assert plan.calls_of([plan.solution(problem, rng)]) == wanted


def test_an_unknown_way_is_a_sentence(name: str):
    with pytest.raises(TaskError, match=f"{name}:bear: accepted are tools, bare, plan; did you mean bare"):
        load_environment(f"{name}:bear")


def test_a_corpus_has_thinking_and_calls_and_carries_nothing_out(name: str, monkeypatch):
    world, rng = load_environment(f"{name}:bare"), random.Random(0)
    problem = next(world.problems("train", 0))
    steps = world.expert(problem)
    monkeypatch.setattr(type(world), "open", None)
    lines = world.worked(problem, rng).split("\n")
    assert [line for line in lines if line.endswith("}")] == [
        call.name + call.arguments for call in (tool_call(step.call, world.skills, 0).tool_calls[0] for step in steps)
    ]
    assert [line for line in lines if not line.endswith("}")] == [step.thought for step in steps if step.thought]
