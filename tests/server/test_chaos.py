"""Many clients at once, of every protocol, many of which leave at any moment: nobody gets what is another's."""

from __future__ import annotations

import http.client
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from leanseek.engine.engine import Engine
from leanseek.engine.paged_cache import PagedCache
from leanseek.engine.request import SamplingParams
from leanseek.messages import Message
from tests.server.invariants import events_of
from tests.server.test_app import until

QUESTIONS = [f"total {a} +{b}" for a in range(4) for b in range(3)]


def fields_of(path, question):
    chat = [{"role": "user", "content": question}]
    drawn = {"temperature": 0, "thinking": {"type": "disabled"}}
    if path == "/v1/completions":
        return {"prompt": question, "temperature": 0, "max_tokens": 24}
    if path == "/v1/responses":
        return {"input": question, "temperature": 0, "reasoning": {"effort": "none"}, "max_output_tokens": 24}
    return {"messages": chat, "max_tokens": 24, **drawn}


def text_of(path, stream, body):
    if stream:
        events = [one for one in events_of(body) if one != "[DONE]"]
        if path == "/v1/chat/completions":
            return "".join(one["choices"][0]["delta"].get("content") or "" for one in events)
        if path == "/v1/completions":
            return "".join(one["choices"][0]["text"] for one in events)
        if path == "/v1/messages":
            return "".join(one["delta"].get("text", "") for one in events if one["type"] == "content_block_delta")
        return "".join(one["delta"] for one in events if one["type"] == "response.output_text.delta")
    answer = json.loads(body)
    if path == "/v1/messages":
        return "".join(block["text"] for block in answer["content"])
    if path == "/v1/responses":
        return "".join(part["text"] for item in answer["output"] for part in item["content"])
    choice = answer["choices"][0]
    return choice["text"] if path == "/v1/completions" else choice["message"]["content"]


@pytest.mark.parametrize("requests", [160, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_chaos(make_model, tiny_tokenizer, serve, requests):
    model = make_model(max_position_embeddings=256)
    alone = Engine(model, tiny_tokenizer, max_batch=1)
    expected = {}
    for question in QUESTIONS:
        prompt = alone.chat.prompt([Message("user", question)], thinking=False)
        text = [tiny_tokenizer.bos_id, *tiny_tokenizer.encode(question)]
        for kind, ids in (("chat", prompt), ("text", text)):
            params = SamplingParams(max_tokens=24, temperature=0)
            expected[kind, question] = alone.generate([ids], params)[0].text
    # Room for few texts at once, so that some are sent back to wait.
    cache_bytes = 640 * PagedCache.bytes_per_token(model.cache_specs())
    engine = Engine(model, tiny_tokenizer, max_batch=6, cache_bytes=cache_bytes, drafts=1)
    listener = serve(engine, most_requests=10)
    outcomes = {"answered": 0, "left": 0, "refused": 0}

    def ask(number):
        rng = random.Random(number)
        path = rng.choice(["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"])
        question, stream, leaves = rng.choice(QUESTIONS), rng.random() < 0.5, rng.random() < 0.4
        body = json.dumps({**fields_of(path, question), "stream": stream})
        body = body if rng.random() < 0.9 else body[:-1]
        # Sent away, a client asks again, so that how many are answered is not for the clock to say.
        while (outcome := once(path, body, stream, rng.random() * 0.05 if leaves else None, question)) is None:
            time.sleep(0.01)
        return outcome

    def once(path, body, stream, leaves_after_s, question):
        connection = http.client.HTTPConnection("127.0.0.1", listener.port, timeout=30)
        try:
            connection.request("POST", path, body)
            if leaves_after_s is not None:
                time.sleep(leaves_after_s)
                return "left"
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status in (200, 400, 429), (answer.status, text)
            if answer.status == 429:
                return None
            if answer.status != 200:
                return "refused"
            kind = "text" if path == "/v1/completions" else "chat"
            assert text_of(path, stream, text) == expected[kind, question]
            return "answered"
        finally:
            connection.close()

    with ThreadPoolExecutor(12) as pool:
        for outcome in pool.map(ask, range(requests)):
            outcomes[outcome] += 1
    until(lambda: listener.bridge.under_way == 0 and not engine.has_work)
    engine.check_integrity()
    assert engine.scheduler.blocks.free + len(engine.prefixes) == engine.scheduler.blocks.count
    assert outcomes["answered"] > requests / 10, outcomes
    assert outcomes["left"] > requests / 10, outcomes
