from __future__ import annotations

import asyncio
import threading
import time

import pytest

from leanseek.engine.engine import Engine
from leanseek.engine.request import SamplingParams
from leanseek.errors import CheckpointError, EngineError
from leanseek.server.bridge import Bridge
from leanseek.server.ticket import NotReadyError, OverloadedError


@pytest.fixture
def start():
    """Return a function that starts a bridge to an engine; closed when the test ends."""
    opened = []

    def begin(engine, **options) -> Bridge:
        bridge = Bridge(lambda report: engine, **options)
        bridge.start()
        bridge.wait(5)
        opened.append((bridge, engine))
        return bridge

    yield begin
    for bridge, engine in opened:
        if hasattr(engine, "free"):
            engine.free()
        bridge.close()


async def until(condition, timeout_s=5.0):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.001)


async def collect(bridge, prompt_ids, params):
    with bridge.submit(prompt_ids, params) as ticket:
        return [event async for event in ticket]


def test_many_requests_get_what_they_get_alone(tiny_model, tiny_tokenizer, start):
    prompts = [tiny_tokenizer.encode(text) for text in ("start 5", "the largest number of 3", "where", "a and b")]
    params = [SamplingParams(max_tokens=9 + i, temperature=i % 2, seed=i, n=1 + i % 2, logprobs=0) for i in range(4)]
    alone = Engine(tiny_model, tiny_tokenizer, max_batch=1)
    expected = [[output.token_ids for output in alone.generate([p], q)] for p, q in zip(prompts, params, strict=True)]
    bridge = start(Engine(tiny_model, tiny_tokenizer, max_batch=4))

    async def everything():
        return await asyncio.gather(*(collect(bridge, p, q) for p, q in zip(prompts, params, strict=True)))

    for events, replies, asked in zip(asyncio.run(everything()), expected, params, strict=True):
        for index in range(asked.n):
            mine = [event for event in events if event.index == index]
            assert [event.token_id for event in mine] == replies[index]
            assert all(event.finish_reason is None for event in mine[:-1])
            assert mine[-1].finish_reason in ("stop", "length")
    assert bridge.active == 0
    assert not bridge.engine.has_work


@pytest.mark.parametrize("phase", ["queued", "prefill", "decode"])
def test_leaving_a_ticket_frees_its_rows_before_the_next_step(script, start, phase):
    engine = script("think", "answer", rows=1)
    bridge = start(engine)

    async def go():
        engine.hold()
        if phase == "queued":  # another request has the only row
            other = bridge.submit([1], SamplingParams(max_tokens=1000))
            engine.allow()
            await until(lambda: bridge.steps == 1)
        before = bridge.steps
        with bridge.submit([1, 2], SamplingParams(max_tokens=1000, n=2)) as ticket:
            if phase == "decode":
                engine.allow(2)
                await until(lambda: bridge.steps == before + 2)
            before = bridge.steps
        # A step is waiting to be allowed; the order to cancel is obeyed when it is over.
        engine.allow()
        await until(lambda: bridge.steps == before + 1 or not engine.has_work)
        await until(lambda: ticket.request_id not in {key[0] for key in [*engine.running, *engine.waiting]})
        assert bridge.steps <= before + 1
        assert bridge.active == (phase == "queued")
        if phase == "queued":
            other.close()
        engine.free()
        await until(lambda: not engine.has_work)

    asyncio.run(go())


def test_a_real_engine_lets_go_of_a_cancelled_request(tiny_model, tiny_tokenizer, start):
    bridge = start(Engine(tiny_model, tiny_tokenizer, max_batch=4))

    async def go():
        params = SamplingParams(max_tokens=100, n=6, seed=1, ignore_eos=True)
        with bridge.submit(tiny_tokenizer.encode("start"), params) as ticket:
            await anext(aiter(ticket))
            assert bridge.active == 1
        await until(lambda: bridge.active == 0 and not bridge.engine.has_work)
        # and it serves on
        events = await collect(bridge, tiny_tokenizer.encode("start"), SamplingParams(max_tokens=3, ignore_eos=True))
        assert len(events) == 3

    asyncio.run(go())


def test_a_failing_step_fails_its_requests_and_no_other(script, start, capfd):
    engine = script("think", "answer")
    bridge = start(engine)

    async def go():
        engine.hold()
        tickets = [bridge.submit([1], SamplingParams(max_tokens=50)) for _ in range(2)]
        engine.allow()
        await until(lambda: bridge.active == 2)
        engine.fail_next = RuntimeError("a secret path")
        engine.free()
        for ticket in tickets:
            with pytest.raises(EngineError, match="RuntimeError") as caught:
                async for _ in ticket:
                    pass
            assert "secret" not in str(caught.value)
        assert bridge.state == "ready"
        assert not engine.has_work
        assert len(await collect(bridge, [1], SamplingParams(max_tokens=4))) == 4

    asyncio.run(go())
    assert "a secret path" in capfd.readouterr().err


def test_an_engine_that_cannot_cancel_takes_no_more_requests(script, start, capfd):
    engine = script("think", "answer")
    bridge = start(engine)

    async def go():
        engine.hold()
        ticket = bridge.submit([1], SamplingParams(max_tokens=50))
        engine.fail_next, engine.fail_cancel = RuntimeError("step"), RuntimeError("cancel")
        engine.free()
        with pytest.raises(EngineError):
            async for _ in ticket:
                pass
        await until(lambda: bridge.state == "failed")
        with pytest.raises(NotReadyError, match="has failed"):
            bridge.submit([1], SamplingParams())

    asyncio.run(go())
    assert "takes no more requests" in capfd.readouterr().err


def test_a_refused_request_is_told_and_the_rest_go_on(tiny_model, tiny_tokenizer, start):
    bridge = start(Engine(tiny_model, tiny_tokenizer, max_batch=4))

    async def go():
        good = asyncio.create_task(collect(bridge, [1, 2], SamplingParams(max_tokens=4, ignore_eos=True)))
        with pytest.raises(EngineError, match="outside the vocabulary"):
            await collect(bridge, [10**6], SamplingParams(max_tokens=4))
        assert len(await good) == 4

    asyncio.run(go())


def test_broken_weights_fail_the_request(make_model, tiny_tokenizer, start):
    model = make_model()
    model.lm_head.weight.data[:] = float("nan")
    bridge = start(Engine(model, tiny_tokenizer, max_batch=4))
    with pytest.raises(EngineError, match="not a finite number"):
        asyncio.run(collect(bridge, [1, 2], SamplingParams(max_tokens=4, n=2)))
    assert bridge.active == 0


def test_no_more_than_the_allowed_number_at_once(script, start):
    engine = script("think", "answer")
    bridge = start(engine, most_requests=2)

    async def go():
        engine.hold()
        tickets = [bridge.submit([1], SamplingParams(max_tokens=2)) for _ in range(2)]
        with pytest.raises(OverloadedError, match="2 requests"):
            bridge.submit([1], SamplingParams(max_tokens=2))
        engine.free()
        for ticket in tickets:
            assert len([event async for event in ticket]) == 2

    asyncio.run(go())


def test_closing_tells_the_requests(script, start):
    engine = script("think", "answer")
    bridge = start(engine)

    async def go():
        engine.hold()
        ticket = bridge.submit([1], SamplingParams(max_tokens=1000))
        await until(lambda: bridge.active == 1)
        closing = asyncio.create_task(asyncio.to_thread(bridge.close))
        await asyncio.sleep(0.01)
        engine.allow()
        with pytest.raises(NotReadyError, match="stopping"):
            async for _ in ticket:
                pass
        await closing
        assert not engine.has_work
        with pytest.raises(NotReadyError, match="is closed"):
            bridge.submit([1], SamplingParams())

    asyncio.run(go())


def test_loading_is_reported(script):
    go_on, told = threading.Event(), threading.Event()

    def load(report):
        report("reading", 0.25)
        told.set()
        go_on.wait(5)
        return script("think", "answer")

    bridge = Bridge(load)
    assert bridge.state == "loading"
    bridge.start()
    assert told.wait(5)
    assert (bridge.phase, bridge.progress) == ("reading", 0.25)
    with pytest.raises(NotReadyError, match="still loading"):
        _ = bridge.engine
    with pytest.raises(NotReadyError, match="not loaded after"):
        bridge.wait(0.01)
    go_on.set()
    bridge.wait(5)
    assert (bridge.state, bridge.progress) == ("ready", 1.0)
    bridge.close()
    assert bridge.state == "closed"


def test_a_failed_load_is_raised_by_wait():
    called = threading.Event()

    def load(report):
        raise CheckpointError("no weights here")

    bridge = Bridge(load)
    bridge.on_failure = called.set
    bridge.start()
    with pytest.raises(CheckpointError, match="no weights here"):
        bridge.wait(5)
    assert called.wait(5)
    assert bridge.state == "failed"
    bridge.close()


def test_a_loop_that_is_gone_does_not_hold_rows(script, start):
    engine = script("think", "answer")
    bridge = start(engine)
    engine.hold()

    async def go():
        bridge.submit([1], SamplingParams(max_tokens=100_000))

    asyncio.run(go())  # its loop is closed, and nobody left the ticket
    engine.free()
    limit = time.monotonic() + 5
    while engine.has_work or bridge.active:
        assert time.monotonic() < limit
        time.sleep(0.001)
