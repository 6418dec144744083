"""Stream: the same samples as in turn where nothing is learnt, never older than allowed, and failures that are told."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from leanseek.cost.ledger import Charge
from leanseek.engine.engine import Engine
from leanseek.engine.pool import EnginePool
from leanseek.engine.shared import SharedEngine
from leanseek.errors import RunError
from leanseek.rl.rollouts import Rollouts
from leanseek.rl.stream import Stream
from leanseek.sections.grpo import GrpoSettings
from leanseek.train.objectives.grpo import Grpo


@pytest.fixture
def make(tiny_tokenizer, even) -> Iterator:
    """Return a function that gives a stream, and rollouts in turn on the same model; streams are closed at the end."""
    streams: list[Stream] = []

    def made(model, *, staleness: int = 2, check=None, **settings) -> tuple[Stream, Rollouts]:
        values = {"prompts_per_step": 4, "samples_per_prompt": 4, "max_new_tokens": 10} | settings
        chosen = GrpoSettings(**values)
        pool = EnginePool(model, tiny_tokenizer, max_batch=16, max_context_tokens=64, record_experts=True)
        in_turn = Rollouts(pool, [even], {}, chosen, 0, Charge("test"))
        streams.append(
            Stream(
                model,
                Rollouts(pool, [even], {}, chosen, 0, Charge("test")),
                lambda snapshot, condition, number: SharedEngine(
                    Engine(snapshot, tiny_tokenizer, **pool.options), condition
                ),
                staleness=staleness,
                check=check,
                steps=chosen.steps,
            )
        )
        return streams[-1], in_turn

    yield made
    for stream in streams:
        stream.close()


def wait_for(stream: Stream, done) -> None:
    end_s = time.monotonic() + 30
    while time.monotonic() < end_s:
        with stream._condition:
            if done():
                return
        time.sleep(0.005)
    raise AssertionError("it did not come about")


def idle(stream: Stream) -> bool:
    return not any(slot.open for slot in stream._slots)


@pytest.mark.parametrize("refill", [0, 2])
def test_while_nothing_is_learnt_the_samples_are_those_drawn_in_turn(make, make_model, refill):
    stream, in_turn = make(make_model(), refill=refill)
    for step in range(4):
        batch, expected = stream.batch(step), in_turn.batch(step)
        # With refills the places of a step are filled one by one, not in rounds: which problems come next differs.
        if not refill:
            assert batch.metrics["reward"] == expected.metrics["reward"]
            assert len(batch.groups) == len(expected.groups)
        groups = {tuple(group.prompt): group for group in expected.groups}
        both = [(group, groups[key]) for group in batch.groups if (key := tuple(group.prompt)) in groups]
        assert len(both) >= 1
        first = [(one, other) for one, other in both if one.replies == other.replies]
        assert len(first) == len(both) or refill
        for one, other in first:
            assert one.advantages == other.advantages
            for mine, theirs in zip(one.logprobs, other.logprobs, strict=True):
                assert mine == pytest.approx(theirs, abs=1e-5)
            assert all(torch.equal(a, b) for a, b in zip(one.experts, other.experts, strict=True))
    assert stream.rollouts.meter.tokens > 0
    if not refill:
        assert stream.rollouts.meter.tokens == in_turn.meter.tokens


def test_later_steps_are_drawn_meanwhile_up_to_the_bound_and_no_further(make, make_model):
    stream, _ = make(make_model(), staleness=2)
    stream.batch(0)
    wait_for(stream, lambda: idle(stream) and all(stream._found[step].missing == 0 for step in (1, 2)))
    time.sleep(0.05)
    with stream._condition:
        assert idle(stream) and stream._found[3].missing != 0 and not stream._found[3].attempts
    assert stream.batch(1).metrics["staleness"] == 1.0, "by the weights of step 0"
    assert stream.batch(2).metrics["staleness_most"] == 2.0


def test_no_sample_is_older_than_allowed_and_each_is_of_one_copy_of_the_weights(make, make_model):
    model, plain, gaps = make_model(), Grpo(0.2, 0.28), []

    @torch.no_grad()
    def check(snapshot, batch):
        gaps.append(plain(snapshot, batch).metrics)
        return {"logprob_gap": gaps[-1]["logprob_gap"], "routing_agreement": gaps[-1]["routing_agreement"]}

    stream, _ = make(model, staleness=1, check=check)
    drifts = []
    for step in range(5):
        batch = stream.batch(step)
        assert 0 <= batch.metrics["staleness"] <= batch.metrics["staleness_most"] <= 1
        if batch.groups:
            drifts.append(plain(model, batch).metrics["logprob_gap"])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.05)
    assert len(gaps) >= 3, "each copy that was used was compared"
    assert max(one["logprob_gap"] for one in gaps) < 1e-5
    assert min(one["routing_agreement"] for one in gaps) == 1.0
    assert max(drifts) > 1e-2, "the model itself had moved on"


def test_asking_for_another_step_begins_there(make, make_model):
    stream, in_turn = make(make_model())
    first = stream.batch(0)
    again = stream.batch(0)
    assert [g.replies for g in again.groups] == [g.replies for g in first.groups]
    assert [g.replies for g in stream.batch(7).groups] == [g.replies for g in in_turn.batch(7).groups]


def test_nothing_is_drawn_beyond_the_last_step(make, make_model):
    stream, _ = make(make_model(), staleness=9, steps=2)
    stream.batch(0)
    stream.batch(1)
    wait_for(stream, lambda: idle(stream))
    assert stream._next is None and not any(step > 1 for step in stream._found)


def test_a_failure_is_told_and_nobody_waits_for_ever(make, make_model, monkeypatch):
    calls = []

    def broken(self):
        calls.append(self)
        raise ZeroDivisionError("broken")

    monkeypatch.setattr(Engine, "advance", broken)
    stream, _ = make(make_model())
    with pytest.raises(RunError, match="the rollouts have stopped: broken"):
        stream.batch(0)
    assert len(calls) == 1
    stream.close()
    assert not stream._owner.is_alive()


def test_closing_in_the_middle_ends_every_thread(make, make_model):
    stream, _ = make(make_model(), staleness=8, max_new_tokens=40)
    stream.batch(0)
    stream.close()
    wait_for(stream, lambda: idle(stream))
