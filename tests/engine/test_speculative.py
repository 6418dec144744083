"""Speculation: the same replies, sooner or later; and drafts that count only where the model agrees."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

import leanseek.engine.engine as module
from leanseek.engine.engine import Engine
from leanseek.engine.paged_cache import PagedCache
from leanseek.engine.request import SamplingParams
from leanseek.engine.speculative import TRIAL_STEPS, Gain
from leanseek.errors import EngineError
from leanseek.model.segments import Segments

GREEDY = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True, logprobs=0)
DRAWN = SamplingParams(max_tokens=24, seed=5, ignore_eos=True, logprobs=0)


@pytest.fixture(autouse=True)
def always(monkeypatch):
    monkeypatch.setattr(module, "BLOCK_TOKENS", 8)
    monkeypatch.setattr(module, "CHUNK_TOKENS", 16)
    monkeypatch.setattr(Gain, "pays", lambda self, rows: True)


def prompt(tokens: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 320, (tokens,), generator=torch.Generator().manual_seed(1000 + seed)).tolist()


def engine_of(model, drafts: int, *, paged: bool, blocks: int = 60, **options) -> Engine:
    if not paged:
        return Engine(model, drafts=drafts, **options)
    width = PagedCache.bytes_per_token(model.cache_specs())
    return Engine(model, drafts=drafts, cache_bytes=blocks * 8 * width, **options)


@pytest.fixture
def predictable(make_model):
    """A model whose MTP layer is right now and then: the main model says what the MTP layer can see too."""
    model = make_model(seed=3, initializer_range=0.05)
    with torch.no_grad():
        # The embedding leads, so the next token depends on the last one above all; the MTP layer copies it.
        model.model.embed_tokens.weight.mul_(40)
        layer = model.mtp_layer
        layer.eh_proj.weight.zero_()
        layer.eh_proj.weight[:, : model.config.hidden_size] = torch.eye(model.config.hidden_size)
        layer.enorm.weight.fill_(1.0)
        layer.shared_head.norm.weight.copy_(model.model.norm.weight)
    return model


@pytest.mark.parametrize("paged", [False, True], ids=["whole texts", "blocks"])
@pytest.mark.parametrize("drafts", [1, 2, 4])
@pytest.mark.parametrize(
    "params", [GREEDY, DRAWN, replace(DRAWN, temperature=0.6, top_p=0.8)], ids=["greedy", "1", "cut"]
)
def test_replies_are_those_of_plain_decoding(predictable, paged, drafts, params):
    prompts = [prompt(n, n) for n in (5, 1, 17, 33)]
    each = [replace(params, seed=i, max_tokens=10 + 7 * i, n=1 + i % 2) for i in range(4)]
    expected = Engine(predictable).generate(prompts, each)
    engine = engine_of(predictable, drafts, paged=paged)
    got = engine.generate(prompts, each)
    engine.check_integrity()
    assert [o.token_ids for o in got] == [o.token_ids for o in expected]
    for one, other in zip(got, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=5e-5)
        assert one.finish_reason == other.finish_reason
    assert 0 < engine.speculation.accepted < engine.speculation.drafted


@pytest.mark.parametrize("drafts", [1, 3])
def test_the_routing_is_that_of_plain_decoding(predictable, drafts):
    prompts = [prompt(n, n) for n in (5, 1, 17)]
    each = [replace(DRAWN, seed=i, max_tokens=10 + 7 * i, n=1 + i % 2) for i in range(3)]
    expected = Engine(predictable, record_experts=True).generate(prompts, each)
    engine = Engine(predictable, drafts=drafts, record_experts=True)
    for one, other in zip(engine.generate(prompts, each), expected, strict=True):
        assert one.token_ids == other.token_ids and torch.equal(one.experts, other.experts)
    assert 0 < engine.speculation.accepted < engine.speculation.drafted


def test_what_is_accepted_is_what_the_mtp_layer_says_on_the_whole_text(predictable):
    ids = prompt(9)
    engine = engine_of(predictable, 1, paged=False)
    said = engine.generate([ids], GREEDY)[0].token_ids
    text = torch.tensor([*ids, *said])
    with torch.no_grad():
        segments = Segments.single(len(text) - 1)
        hidden = predictable(text[:-1], segments)
        drafts = predictable.logits(predictable.mtp(hidden, text[1:], segments)).argmax(-1)
    # The draft made after token i and the one that follows is for place i + 2.
    right = [int(drafts[i]) == int(text[i + 2]) for i in range(len(ids) - 1, len(text) - 2)]
    wanted, place = 0, 0
    while place < len(right):
        wanted += right[place]
        place += 1 + right[place]
    assert abs(engine.speculation.accepted - wanted) <= 1, "the last draft may be for a token beyond the limit"


def test_sampled_tokens_have_the_models_distribution(predictable):
    """Chi-square of the second and third token over many seeds against the model's own shares, at 99.9%."""
    ids, count = prompt(6), 3000
    params = replace(DRAWN, max_tokens=3, temperature=0.12, n=count, seed=0)
    engine = engine_of(predictable, 2, paged=False, max_batch=count)
    outputs = engine.generate([ids], params)
    assert engine.speculation.accepted > 0
    first = Counter(o.token_ids[0] for o in outputs).most_common(1)[0][0]
    some = [o.token_ids[1] for o in outputs if o.token_ids[0] == first]
    with torch.no_grad():
        text = torch.tensor([*ids, first])
        shares = torch.softmax(predictable.logits(predictable(text, Segments.single(len(text)))[-1]) / 0.12, -1)
    seen = torch.bincount(torch.tensor(some), minlength=320).double()
    expected = shares.double() * len(some)
    common = expected >= 5
    statistic = float(((seen - expected)[common] ** 2 / expected[common]).sum())
    rest = float(expected[~common].sum())
    if rest >= 5:
        statistic += float((seen[~common].sum() - rest) ** 2 / rest)
    freedom = int(common.sum())
    assert freedom >= 3
    # Wilson-Hilferty: the 99.9% point of chi-square.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3
    assert statistic < limit


def test_stops_and_limits_hold_within_a_step(predictable, tiny_tokenizer):
    free = Engine(predictable).generate([prompt(5)], DRAWN)[0].token_ids
    token = next(t for t in free[3:] if free.count(t) == 1)
    engine = engine_of(predictable, 4, paged=True)
    stopped = engine.generate([prompt(5)], replace(DRAWN, stop_token_ids=(token,)))[0]
    assert stopped.token_ids == free[: free.index(token) + 1] and stopped.finish_reason == "stop"
    for limit in range(1, 9):
        output = engine.generate([prompt(5)], replace(DRAWN, max_tokens=limit))[0]
        assert output.token_ids == free[:limit] and output.finish_reason == "length"
    short = engine_of(predictable, 4, paged=False, max_context_tokens=12)
    assert short.generate([prompt(5)], DRAWN)[0].token_ids == free[:7]


def test_events_come_in_order_whatever_comes_and_goes(predictable):
    rng = random.Random(1)
    engine, wanted, events, gone = engine_of(predictable, 2, paged=True, blocks=30, max_batch=3), {}, {}, set()
    for name in range(20):
        ids = prompt(rng.randint(1, 25), name)
        params = SamplingParams(max_tokens=rng.randint(1, 25), seed=name, ignore_eos=True)
        wanted[engine.add(ids, params, f"r{name}")] = Engine(predictable).generate([ids], params)[0].token_ids
        for _ in range(rng.randint(0, 3)):
            for event in engine.step():
                events.setdefault(event.request_id, []).append(event)
            engine.check_integrity()
        if rng.random() < 0.2 and f"r{name}" not in events:
            engine.cancel(f"r{name}")
            gone.add(f"r{name}")
    while engine.has_work:
        for event in engine.step():
            events.setdefault(event.request_id, []).append(event)
        engine.check_integrity()
    for name, tokens in wanted.items():
        if name not in gone:
            assert [event.token_id for event in events[name]] == tokens
            assert [event.finish_reason for event in events[name]] == [None] * (len(tokens) - 1) + ["length"]
    assert engine.speculation.accepted > 0 and not engine.speculation._unread


def test_a_model_without_mtp_cannot_draft(make_model):
    with pytest.raises(EngineError, match="drafts = 1: the model has no MTP layer"):
        Engine(make_model(num_nextn_predict_layers=0), drafts=1)


def test_the_faster_kind_of_step_is_preferred_once_both_were_tried(monkeypatch):
    monkeypatch.undo()
    gain = Gain()
    for speculated, seconds in ((True, 0.5), (False, 1.0)):
        for _ in range(TRIAL_STEPS):
            assert gain.pays(3) == speculated
            gain.note(3, speculated, 3, seconds)
    assert gain.pays(3) and gain.pays(2), "two and three rows are one size"
    for _ in range(60):
        gain.note(3, True, 3, 2.0)
    assert not gain.pays(3) and gain.pays(40), "of other sizes nothing is known yet"
