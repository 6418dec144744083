"""An engine that several threads ask gives each what an engine of its own would."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from leanseek.engine.engine import Engine
from leanseek.engine.request import SamplingParams
from leanseek.engine.shared import SharedEngine
from leanseek.errors import EngineError
from leanseek.kernels.threads import run_all

PARAMS = SamplingParams(max_tokens=8, seed=3, ignore_eos=True, logprobs=0)


@pytest.fixture
def shared(tiny_model, tiny_tokenizer):
    """A shared engine of four places whose owner goes on until the test ends."""
    condition, ended = threading.Condition(), threading.Event()
    shared = SharedEngine(Engine(tiny_model, tiny_tokenizer, max_batch=4, max_context_tokens=40), condition)

    def own() -> None:
        while not ended.is_set():
            with condition:
                if not shared.has_work:
                    condition.wait(0.01)
            shared.advance()

    owner = threading.Thread(target=own)
    owner.start()
    yield shared
    ended.set()
    owner.join()


def test_each_caller_gets_its_replies_in_order(shared, tiny_model):
    asked = [([[5 + i, 7], [9 + i]], replace(PARAMS, seed=i, n=1 + i % 3, max_tokens=3 + i)) for i in range(7)]
    got = run_all([lambda one=one: shared.generate(*one) for one in asked])
    for (prompts, params), outputs in zip(asked, got, strict=True):
        expected = Engine(tiny_model).generate(prompts, params)
        assert [o.token_ids for o in outputs] == [o.token_ids for o in expected]
        assert [o.index for o in outputs] == [o.index for o in expected]
    assert shared.asked == 0 and not shared.has_work


def test_what_is_refused_is_told_to_who_asked_alone(shared):
    def refused() -> str:
        with pytest.raises(EngineError) as error:
            shared.generate([[5], []], PARAMS)
        return str(error.value)

    told, fine = run_all([refused, lambda: shared.generate([[5]], PARAMS)])
    assert "the prompt is empty" in told and len(fine[0].token_ids) == 8
    assert shared.generate([], PARAMS) == [] and shared.asked == 0


def test_progress_is_told(shared):
    counts: list[int] = []
    shared.generate([[5], [6], [7]], PARAMS, on_progress=counts.append)
    assert counts[-1] == 3


def test_who_waits_learns_that_it_has_stopped(tiny_model):
    shared = SharedEngine(Engine(tiny_model), threading.Condition())
    told: list[EngineError] = []

    def ask() -> None:
        with pytest.raises(EngineError, match="has stopped: no power") as error:
            shared.generate([[5]], PARAMS)
        told.append(error.value)

    waiting = threading.Thread(target=ask)
    waiting.start()
    while not shared.has_work:
        pass
    shared.advance()  # one token
    shared.fail(RuntimeError("no power"))
    waiting.join(10)
    ask()
    assert len(told) == 2 and not shared.engine.has_work
