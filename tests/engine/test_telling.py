"""What requests ask of logits beyond a token: penalties, biases, grammars, likeliest tokens, a prompt's own chances."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch

import leanseek.engine.engine as module
from leanseek.engine.engine import Engine
from leanseek.engine.paged_cache import PagedCache
from leanseek.engine.request import Grammar, SamplingParams
from leanseek.errors import EngineError
from leanseek.model.segments import Segments

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, logprobs=0)
DRAWN = SamplingParams(max_tokens=12, seed=5, ignore_eos=True, logprobs=0)


def prompt(tokens: int, seed: int = 0) -> list[int]:
    return torch.randint(30, 320, (tokens,), generator=torch.Generator().manual_seed(1000 + seed)).tolist()


@pytest.fixture(params=["whole texts", "blocks"])
def engine(request, tiny_model, tiny_tokenizer, monkeypatch) -> Engine:
    monkeypatch.setattr(module, "BLOCK_TOKENS", 8)
    monkeypatch.setattr(module, "CHUNK_TOKENS", 8)
    monkeypatch.setattr(module, "PREFILL_TOKENS", 16)
    if request.param == "whole texts":
        return Engine(tiny_model, tiny_tokenizer)
    width = PagedCache.bytes_per_token(tiny_model.cache_specs())
    return Engine(tiny_model, tiny_tokenizer, cache_bytes=60 * 8 * width)


@torch.no_grad()
def logits_of(model, ids: list[int]) -> torch.Tensor:
    return model.logits(model(torch.tensor(ids), Segments.single(len(ids))))


def test_the_likeliest_tokens_are_the_models(engine, tiny_model):
    ids = prompt(6)
    params = replace(DRAWN, temperature=0.7, logprobs=4)
    plain = engine.generate([ids], replace(params, logprobs=0))[0]
    output = engine.generate([prompt(9, 1), ids, prompt(3, 2)], [GREEDY, params, GREEDY])[1]
    assert output.token_ids == plain.token_ids and len(output.top_logprobs) == 12
    logprobs = torch.log_softmax(logits_of(tiny_model, [*ids, *output.token_ids])[5:-1] / 0.7, -1)
    for place, tops in enumerate(output.top_logprobs):
        expected = logprobs[place].topk(4)
        assert [token for token, _ in tops] == expected.indices.tolist()
        assert [value for _, value in tops] == pytest.approx(expected.values.tolist(), abs=1e-4)
    engine.add(ids, params, "r")
    events = [event for _ in range(40) if engine.has_work for event in engine.step()]
    for event, tops in zip(events, output.top_logprobs, strict=True):
        assert [token for token, _ in event.top_logprobs] == [token for token, _ in tops]
        assert [value for _, value in event.top_logprobs] == pytest.approx([value for _, value in tops], abs=1e-4)


@pytest.mark.parametrize("length", [1, 7, 30])
def test_a_prompts_tokens_have_their_chances_told(engine, tiny_model, length):
    ids = prompt(length)
    engine.generate([ids], GREEDY)  # so that a prefix cache would have it
    output = engine.generate([ids], replace(GREEDY, prompt_logprobs=2, n=2))[1]
    logprobs = torch.log_softmax(logits_of(tiny_model, ids), -1)
    expected = [float(logprobs[i, ids[i + 1]]) for i in range(length - 1)]
    assert output.prompt_logprobs[0] is None and output.prompt_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    assert output.prompt_top_logprobs[0] is None and len(output.prompt_top_logprobs) == length
    for place, tops in enumerate(output.prompt_top_logprobs[1:]):
        assert [token for token, _ in tops] == logprobs[place].topk(2).indices.tolist()
    engine.add(ids, replace(GREEDY, prompt_logprobs=0), "r")
    events = [event for _ in range(40) if engine.has_work for event in engine.step()]
    assert events[0].prompt_logprobs[1:] == pytest.approx(expected, abs=1e-4)
    assert all(event.prompt_logprobs is None for event in events[1:])


def test_a_bias_forces_and_forbids(engine):
    ids = prompt(5)
    free = engine.generate([ids], GREEDY)[0].token_ids
    assert engine.generate([ids], replace(GREEDY, logit_bias=((99, 1e4),)))[0].token_ids == [99] * 12
    without = engine.generate([ids], replace(GREEDY, logit_bias=tuple((t, -1e4) for t in set(free))))[0].token_ids
    assert not set(free) & set(without)
    with pytest.raises(EngineError, match="logit_bias has token 320"):
        engine.add(ids, replace(GREEDY, logit_bias=((320, 1.0),)))
    assert not engine.has_work


def test_penalties_are_openais(engine, tiny_model):
    ids = prompt(5)
    params = replace(GREEDY, frequency_penalty=1.5, presence_penalty=0.5, repetition_penalty=1.3)
    output = engine.generate([ids, prompt(8, 1)], [params, GREEDY])[0]
    text: list[int] = []
    for _ in range(12):
        logits = logits_of(tiny_model, [*ids, *text])[-1].clone()
        for token in {*ids, *text}:
            logits[token] = logits[token] / 1.3 if logits[token] > 0 else logits[token] * 1.3
            logits[token] -= 1.5 * text.count(token) + 0.5 * (token in text)
        text.append(int(logits.argmax()))
    assert output.token_ids == text


@pytest.mark.parametrize("seed", range(4))
def test_a_grammar_holds_whatever_the_model_would_say(engine, tiny_tokenizer, seed):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    drawn = SamplingParams(max_tokens=60, seed=seed, temperature=1.5)
    grammars = [Grammar("json_schema", json.dumps(schema)), Grammar("regex", "[0-9]{3}-[ab]+z"), None]
    outputs = engine.generate([prompt(4)] * 3, [replace(drawn, grammar=grammar) for grammar in grammars])
    if outputs[0].finish_reason == "stop":
        found = json.loads(tiny_tokenizer.decode(outputs[0].token_ids))
        assert isinstance(found["a"], int) and found["b"] in ("x", "y")
    if outputs[1].finish_reason == "stop":
        assert re.fullmatch("[0-9]{3}-[ab]+z", outputs[1].text)
    assert re.match("[0-9]", outputs[1].text)
    assert outputs[2].token_ids == engine.generate([prompt(4)], drawn)[0].token_ids
    with pytest.raises(EngineError):
        engine.add(prompt(4), replace(drawn, grammar=Grammar("regex", "(")))


def test_a_rule_goes_along_with_a_sample_that_is_sent_back(tiny_model, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_TOKENS", 8)
    width = PagedCache.bytes_per_token(tiny_model.cache_specs())
    params = [replace(GREEDY, max_tokens=40, frequency_penalty=1.0, logprobs=2) for _ in range(5)]
    prompts = [prompt(9, i) for i in range(5)]
    expected = Engine(tiny_model, tiny_tokenizer).generate(prompts, params)
    engine = Engine(tiny_model, tiny_tokenizer, cache_bytes=16 * 8 * width)
    got = engine.generate(prompts, params)
    assert engine.scheduler.preempted > 0
    assert [o.token_ids for o in got] == [o.token_ids for o in expected]
    assert [len(o.top_logprobs) for o in got] == [40] * 5


def test_supports_are_what_the_cuts_leave(engine, tiny_model):
    """By hand from the model's own logits; a trainer then divides by the same sum."""
    ids, cold = prompt(6), replace(GREEDY, supports=True)
    params = replace(DRAWN, temperature=0.5, top_p=0.7, top_k=60, min_p=0.02, supports=True, logit_bias=((5, -1e4),))
    outputs = engine.generate([prompt(9, 1), ids, prompt(3, 2), prompt(4, 3)], [GREEDY, params, cold, DRAWN])
    output = outputs[1]
    logits = logits_of(tiny_model, [*ids, *output.token_ids])[5:-1]
    logits[:, 5] -= 1e4
    shares = torch.softmax(logits / 0.5, -1)
    sizes = set()
    for place, (token, kept) in enumerate(zip(output.token_ids, output.supports, strict=True)):
        expected, reached, most = [], 0.0, float(shares[place].max())
        for candidate in shares[place].argsort(descending=True).tolist()[:60]:
            share = float(shares[place, candidate])
            if reached < 0.7 and share >= 0.02 * most:
                expected.append(candidate)
            reached += share
        assert list(kept) == sorted(expected) and token in kept and 5 not in kept
        within = shares[place, token] / shares[place, list(kept)].sum()
        assert output.logprobs_within[place] == pytest.approx(float(within.log()), abs=1e-4)
        sizes.add(len(kept))
    assert len(sizes) > 1, "the cut must follow the distribution"
    assert [list(kept) for kept in outputs[2].supports] == [[token] for token in outputs[2].token_ids]
    assert outputs[2].logprobs_within == [0.0] * 12
    assert outputs[0].supports is None and outputs[3].logprobs_within is None
    whole = engine.generate([ids], replace(DRAWN, supports=True))[0]
    assert all(len(kept) == tiny_model.config.vocab_size for kept in whole.supports)
    assert whole.logprobs_within == pytest.approx(whole.logprobs, abs=1e-5)
