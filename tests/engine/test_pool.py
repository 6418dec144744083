"""Several engines on one model answer as one does."""

from __future__ import annotations

import signal
import threading
from dataclasses import replace

import pytest
import torch

import leanseek.engine.shares as shares
from leanseek.engine.engine import Engine
from leanseek.engine.pool import EnginePool
from leanseek.engine.request import SamplingParams
from leanseek.errors import EngineError


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    """A few samples are enough for a thread here."""
    monkeypatch.setattr(shares, "LEAST_SAMPLES", 1)


PARAMS = SamplingParams(max_tokens=9, seed=4, ignore_eos=True, logprobs=0)


def prompts(count: int) -> list[list[int]]:
    return [
        torch.randint(3, 320, (1 + i % 7,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(count)
    ]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 11])
def test_replies_come_in_order_whoever_drew_them(tiny_model, tiny_tokenizer, workers, count):
    params = [replace(PARAMS, n=1 + i % 3, seed=i, max_tokens=3 + i) for i in range(count)]
    expected = Engine(tiny_model, tiny_tokenizer).generate(prompts(count), params)
    pool = EnginePool(tiny_model, tiny_tokenizer, workers=workers, max_batch=6, max_context_tokens=40)
    got = pool.generate(prompts(count), params)
    assert [output.token_ids for output in got] == [output.token_ids for output in expected]
    assert [output.text for output in got] == [output.text for output in expected]


def test_progress_counts_over_all_engines(tiny_model, tiny_tokenizer):
    counts: list[int] = []
    EnginePool(tiny_model, tiny_tokenizer, workers=2).generate(prompts(5), PARAMS, on_progress=counts.append)
    assert max(counts) == 5


def test_what_one_engine_refuses_the_pool_refuses_and_goes_on(tiny_model, tiny_tokenizer):
    pool = EnginePool(tiny_model, tiny_tokenizer, workers=2)
    with pytest.raises(EngineError, match="the prompt is empty"):
        pool.generate([[5], []], PARAMS)
    assert len(pool.generate([[5], [6]], PARAMS)) == 2


def test_routing_is_recorded_and_the_batch_shared_out(tiny_model, tiny_tokenizer):
    pool = EnginePool(tiny_model, tiny_tokenizer, workers=2, max_batch=7, record_experts=True)
    assert [engine._rows.capacity for engine in pool.engines] == [4, 4]
    one = Engine(tiny_model, record_experts=True).generate(prompts(3), PARAMS)
    for got, expected in zip(pool.generate(prompts(3), PARAMS), one, strict=True):
        assert torch.equal(got.experts.sort(-1).values, expected.experts.sort(-1).values)


def test_what_ends_one_engine_ends_the_others_with_their_next_reply(tiny_model, tiny_tokenizer):
    """One worker's progress is refused; the other would have 40 replies to go, one after the other."""
    pool = EnginePool(tiny_model, tiny_tokenizer, workers=2, max_batch=2)
    counts: list[int] = []

    def refuse(done: int) -> None:
        counts.append(done)
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        pool.generate(prompts(80), PARAMS, on_progress=refuse)
    assert len(counts) <= 2 and not any(engine.has_work for engine in pool.engines)
    assert len(pool.generate(prompts(3), PARAMS)) == 3, "and all can go on"


def test_ctrl_c_ends_all_engines(tiny_model, tiny_tokenizer):
    pool = EnginePool(tiny_model, tiny_tokenizer, workers=2, max_batch=2)
    counts: list[int] = []

    def interrupt(done: int) -> None:
        counts.append(done)
        if len(counts) == 30:  # both workers have begun
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        pool.generate(prompts(1000), PARAMS, on_progress=interrupt)
    assert 30 <= max(counts) < 500 and not any(engine.has_work for engine in pool.engines)


def test_progress_is_told_by_one_engine_at_a_time(tiny_model, tiny_tokenizer):
    counts: list[int] = []
    EnginePool(tiny_model, tiny_tokenizer, workers=3, max_batch=3).generate(
        prompts(30), PARAMS, on_progress=counts.append
    )
    assert counts == sorted(counts) and counts[-1] == 30


@pytest.mark.parametrize(("samples", "used"), [(1, 1), (5, 1), (6, 2), (8, 2), (40, 3)])
def test_an_engine_is_used_only_where_it_has_enough_to_do(tiny_model, tiny_tokenizer, monkeypatch, samples, used):
    monkeypatch.setattr(shares, "LEAST_SAMPLES", 3)
    pool = EnginePool(tiny_model, tiny_tokenizer, workers=3, max_batch=40)
    calls: list[int] = []
    for number, engine in enumerate(pool.engines):
        generate = engine.generate

        def counted(*given, number=number, generate=generate, **named):
            calls.append(number)
            return generate(*given, **named)

        monkeypatch.setattr(engine, "generate", counted)
    assert len(pool.generate(prompts(samples), replace(PARAMS, max_tokens=2))) == samples
    assert sorted(calls) == list(range(used))
