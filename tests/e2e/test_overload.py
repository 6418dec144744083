"""Ten times too many requests: those that are let in are answered as fast as ever, the rest get 429."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx2

from leanseek.engine.engine import Engine
from leanseek.server.app import Served
from leanseek.server.listener import Listener

ROOM = 8
BODY = {"messages": [{"role": "user", "content": "start 5 +3"}], "max_tokens": 40, "seed": 1}


async def burst(url: str, requests: int) -> tuple[Counter[int], list[httpx2.Response]]:
    limits = httpx2.Limits(max_connections=None)
    async with httpx2.AsyncClient(base_url=url, timeout=60, limits=limits, trust_env=False) as http:
        answers = await asyncio.gather(*(http.post("/v1/chat/completions", json=BODY) for _ in range(requests)))
    return Counter(answer.status_code for answer in answers), answers


def test_ten_times_too_many(tiny_model, tiny_tokenizer):
    """In tokens and steps, not seconds: what is let in is answered whole, and no work is done for what is not."""
    listener = Listener(
        lambda report: Engine(tiny_model, tiny_tokenizer, max_batch=4), Served("tiny"), port=0, most_requests=ROOM
    )
    with listener.background():
        before = listener.bridge.steps
        counts, answers = asyncio.run(burst(listener.url, ROOM))
        assert counts == {200: ROOM}
        expected = {answer.json()["choices"][0]["message"]["content"] for answer in answers}
        assert len(expected) == 1
        steps_each = (listener.bridge.steps - before) / ROOM
        before = listener.bridge.steps
        counts, answers = asyncio.run(burst(listener.url, 10 * ROOM))
        assert set(counts) == {200, 429}
        assert ROOM <= counts[200] and counts[429] > 0
        for answer in answers:
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.json()["error"]["code"] == "overloaded"
            else:
                assert answer.json()["choices"][0]["message"]["content"] in expected
        # Refusals cost the engine nothing: an answer takes no more of its steps than before, within a tenth and a batch
        # that was not full at the end.
        assert (listener.bridge.steps - before) / counts[200] <= 1.1 * steps_each + BODY["max_tokens"] / counts[200]
        assert listener.bridge.under_way == 0
        listener.bridge.engine.check_integrity()
