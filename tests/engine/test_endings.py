"""Endings: stop texts are found as they are said, wherever tokens cut them, at the same price for every token."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

import leanseek.engine.engine as module
from leanseek.engine.endings import Listener
from leanseek.engine.engine import Engine
from leanseek.engine.paged_cache import PagedCache
from leanseek.engine.request import SamplingParams

DRAWN = SamplingParams(max_tokens=40, seed=5, ignore_eos=True, logprobs=0)


def prompt(tokens: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 320, (tokens,), generator=torch.Generator().manual_seed(1000 + seed)).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_a_stop_text_is_heard_with_the_token_that_completes_it(tiny_tokenizer, seed):
    """Against a search through the whole text so far; texts of several bytes a character, cut anywhere."""
    rng = random.Random(seed)
    text = "".join(rng.choice("ab é€😀") for _ in range(60))
    ids = [token for character in text for token in tiny_tokenizer.encode(character)]
    begin = rng.randrange(20, 50)
    stops = (text[begin : begin + 4], "never said", text[begin + 3])
    listener = Listener(tiny_tokenizer, stops)
    for count, token in enumerate(ids, 1):
        decoder = tiny_tokenizer.incremental()
        said = "".join(decoder.push(one) for one in ids[:count])
        heard = listener.hears(token)
        assert heard == any(stop in said for stop in stops), count
        if heard:
            return
    pytest.fail("a stop text was said")


def test_what_a_token_costs_does_not_grow_with_the_reply(tiny_model, tiny_tokenizer, monkeypatch):
    """Each token is decoded once while the reply is drawn, and no more than a stop text's length is kept."""
    pushed: list[int] = []
    incremental = tiny_tokenizer.incremental

    def counting():
        decoder = incremental()
        push = decoder.push
        decoder.push = lambda token: pushed.append(token) or push(token)
        return decoder

    monkeypatch.setattr(tiny_tokenizer, "incremental", counting)
    monkeypatch.setattr(tiny_tokenizer, "decode", lambda ids, **_: pytest.fail("the whole text was decoded"))
    engine = Engine(tiny_model, tiny_tokenizer)
    engine.add(prompt(5), replace(DRAWN, stop=("never said",)))
    for _ in range(DRAWN.max_tokens - 1):
        engine.step()
    (one,) = engine._rows.samples
    assert len(pushed) == DRAWN.max_tokens - 1
    assert len(one.listener._tail) <= len("never said") - 1


@pytest.mark.parametrize("drafts", [0, 2])
def test_stop_texts_are_heard_over_waiting_and_drafting(tiny_model, tiny_tokenizer, monkeypatch, drafts):
    monkeypatch.setattr(module, "BLOCK_TOKENS", 8)
    free = Engine(tiny_model, tiny_tokenizer).generate([prompt(10, i) for i in range(4)], DRAWN)
    stops = [output.text[len(output.text) // 2 :][:3] for output in free]
    params = [replace(DRAWN, stop=(stop,)) for stop in stops]
    width = PagedCache.bytes_per_token(tiny_model.cache_specs())
    engine = Engine(tiny_model, tiny_tokenizer, cache_bytes=7 * 8 * width, drafts=drafts)
    got = engine.generate([prompt(10, i) for i in range(4)], params)
    assert engine.scheduler.preempted > 0, "the case must occur"
    for output, whole, stop in zip(got, free, stops, strict=True):
        assert output.text == whole.text.split(stop, 1)[0] and output.finish_reason == "stop"
        assert stop not in tiny_tokenizer.decode(output.token_ids[:-1])
