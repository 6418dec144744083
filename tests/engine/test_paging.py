"""The engine on blocks: the same replies as with room for all, however texts are cut, sent back and found again."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

import leanseek.engine.engine as module
from leanseek.engine.engine import Engine
from leanseek.engine.paged_cache import PagedCache
from leanseek.engine.request import SamplingParams
from leanseek.errors import EngineError

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, logprobs=0)
DRAWN = SamplingParams(max_tokens=12, seed=5, ignore_eos=True, logprobs=0)
SHAPES = {
    "merged decoder": {},
    "query latent": {"q_lora_rank": 6, "n_group": 4, "topk_group": 2},
    "indexer": {
        "model_type": "deepseek_v32",
        "q_lora_rank": 6,
        "index_n_heads": 16,
        "index_head_dim": 6,
        "index_topk": 20,
    },
    "student": {"model_type": "qwen3", "num_key_value_heads": 1, "num_nextn_predict_layers": 0},
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks and chunks so small that texts of a test have several."""
    monkeypatch.setattr(module, "BLOCK_TOKENS", 8)
    monkeypatch.setattr(module, "CHUNK_TOKENS", 16)


def prompt(tokens: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 320, (tokens,), generator=torch.Generator().manual_seed(1000 + seed)).tolist()


def paged(model, blocks: int = 40, **options) -> Engine:
    specs = model.cache_specs()[: model.config.num_hidden_layers]
    return Engine(model, cache_bytes=blocks * 8 * PagedCache.bytes_per_token(specs), **options)


def texts(outputs) -> list[list[int]]:
    return [output.token_ids for output in outputs]


@pytest.mark.parametrize("shape", SHAPES)
def test_replies_are_those_of_an_engine_with_room_for_all(make_model, shape):
    model = make_model(**SHAPES[shape])
    prompts = [prompt(n, n) for n in (5, 1, 17, 33, 8, 16, 40)]
    params = [replace(DRAWN, seed=i, n=1 + i % 3, max_tokens=3 + 4 * i) for i in range(7)]
    expected = Engine(model).generate(prompts, params)
    engine = paged(model, blocks=80)
    got = engine.generate(prompts, params)
    engine.check_integrity()
    assert texts(got) == texts(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)


def test_a_long_prompt_is_read_in_chunks_between_the_tokens_of_others(tiny_model):
    engine = paged(tiny_model)
    engine.add(prompt(3), replace(GREEDY, max_tokens=30), "short")
    engine.step()
    engine.add(prompt(70, 1), GREEDY, "long")
    seen = []
    while engine.has_work and "long" not in seen:
        seen += [event.request_id for event in engine.step()]
    assert seen.count("short") >= 4, "the short one went on while the long one was read"
    expected = Engine(tiny_model).generate([prompt(70, 1)], GREEDY)[0].token_ids
    rest = [seen_event for _ in range(40) if engine.has_work for seen_event in engine.step()]
    assert len([e for e in rest if e.request_id == "long"]) == len(expected) - 1


@pytest.mark.parametrize("shape", SHAPES)
def test_without_room_for_all_some_are_sent_back_and_nobody_notices(make_model, shape):
    model = make_model(**SHAPES[shape])
    prompts = [prompt(9, i) for i in range(5)]
    params = [replace(DRAWN, seed=i, max_tokens=40) for i in range(5)]
    expected = Engine(model).generate(prompts, params)
    engine = paged(model, blocks=16)
    got = engine.generate(prompts, params)
    assert engine.scheduler.preempted > 0
    engine.check_integrity()
    assert texts(got) == texts(expected)
    assert [o.finish_reason for o in got] == ["length"] * 5
    for one, other in zip(got, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_next_turn_reads_only_what_is_new(make_model, shape):
    model = make_model(**SHAPES[shape])
    engine, history = paged(model), prompt(21)
    expected_cached = 0
    for turn in range(4):
        output = engine.generate([history], replace(DRAWN, seed=turn))[0]
        assert output.cached_tokens == expected_cached
        alone = Engine(model).generate([history], replace(DRAWN, seed=turn))[0]
        assert output.token_ids == alone.token_ids
        assert output.logprobs == pytest.approx(alone.logprobs, abs=2e-5)
        # The reply's last token was never read.
        expected_cached = len(history) + len(output.token_ids) - 1
        history = [*history, *output.token_ids, *prompt(3, turn)]
    assert engine.prefixes.hit_tokens > 0


def test_texts_that_part_within_a_block_share_what_they_have_in_common(tiny_model):
    engine, common = paged(tiny_model), prompt(13)
    engine.generate([[*common, 7, 8]], GREEDY)
    output = engine.generate([[*common, 9, 9, 9]], GREEDY)[0]
    assert output.cached_tokens == 13
    assert output.token_ids == Engine(tiny_model).generate([[*common, 9, 9, 9]], GREEDY)[0].token_ids
    engine.check_integrity()


def test_scopes_share_nothing(tiny_model):
    engine, ids = paged(tiny_model), prompt(20)

    def cached(scope: str) -> int:
        engine.add(ids, replace(GREEDY, max_tokens=1), scope=scope)
        (event,) = engine.step()
        return event.cached_tokens

    assert [cached("one"), cached("other"), cached("one"), cached("")] == [0, 0, 19, 0]


def test_requests_come_and_go_at_any_time_and_no_block_is_lost(tiny_model):
    rng = random.Random(3)
    engine, wanted, events, cancelled = paged(tiny_model, blocks=24, max_batch=4), {}, {}, set()
    beginnings = [prompt(20, 500), prompt(9, 501)]
    for name in range(40):
        ids = [*rng.choice(beginnings)[: rng.randint(0, 20)], *prompt(rng.randint(1, 30), name)]
        params = SamplingParams(max_tokens=rng.randint(1, 30), seed=name, n=rng.randint(1, 3), ignore_eos=True)
        wanted[engine.add(ids, params, f"r{name}")] = Engine(tiny_model).generate([ids], params)
        for _ in range(rng.randint(0, 6)):
            for event in engine.step():
                assert event.request_id not in cancelled
                events.setdefault((event.request_id, event.index), []).append(event)
            engine.check_integrity()
        if rng.random() < 0.3:
            gone = f"r{rng.randint(max(name - 3, 0), name)}"
            over = [events[key][-1].finish_reason for key in events if key[0] == gone]
            if len(over) < len(wanted[gone]) or None in over:
                engine.cancel(gone)
                cancelled.add(gone)
                engine.check_integrity()
    while engine.has_work:
        for event in engine.step():
            events.setdefault((event.request_id, event.index), []).append(event)
        engine.check_integrity()
    assert cancelled and engine.prefixes.hit_tokens > 0
    for name, outputs in wanted.items():
        for index, output in enumerate(outputs):
            got = [event.token_id for event in events.get((name, index), [])]
            if name in cancelled:
                assert got == output.token_ids[: len(got)]
            else:
                assert got == output.token_ids
    assert engine.scheduler.blocks.free + len(engine.prefixes) == 24


def test_broken_numbers_are_not_remembered(make_model):
    model, bad = make_model(), 77
    ids = [t for t in prompt(20) if t != bad]
    engine = paged(model)
    healthy = engine.generate([[*ids, 5]], GREEDY)[0]
    with torch.no_grad():
        kept = model.model.embed_tokens.weight[bad].clone()
        model.model.embed_tokens.weight[bad] = float("nan")
    assert engine.generate([[*ids, bad, 5, 6]], GREEDY)[0].finish_reason == "error"
    engine.check_integrity()
    with torch.no_grad():
        model.model.embed_tokens.weight[bad] = kept
    again = engine.generate([[*ids, bad, 5, 6]], GREEDY)[0]
    assert (
        again.finish_reason == "length"
        and again.token_ids == Engine(model).generate([[*ids, bad, 5, 6]], GREEDY)[0].token_ids
    )
    assert engine.generate([[*ids, 5]], GREEDY)[0].token_ids == healthy.token_ids


def test_a_text_as_long_as_the_cache_is_the_longest(tiny_model):
    engine = paged(tiny_model, blocks=4)
    assert engine.max_context_tokens == 32
    output = engine.generate([prompt(20)], replace(GREEDY, max_tokens=50))[0]
    assert len(output.token_ids) == 12 and output.finish_reason == "length"
    with pytest.raises(EngineError, match="the context of 32 leaves no room"):
        engine.add(prompt(32), GREEDY)
    with pytest.raises(EngineError, match="are the least for this model"):
        Engine(tiny_model, cache_bytes=10)
    with pytest.raises(EngineError, match="routing is recorded only where"):
        Engine(tiny_model, cache_bytes=1 << 20, record_experts=True)


def test_supports_survive_waiting(tiny_model):
    params = [replace(DRAWN, seed=i, max_tokens=30, top_p=0.6, supports=True) for i in range(4)]
    prompts = [prompt(10, i) for i in range(4)]
    expected = Engine(tiny_model).generate(prompts, params)
    engine = paged(tiny_model, blocks=10)
    got = engine.generate(prompts, params)
    assert engine.scheduler.preempted > 0
    assert [output.supports for output in got] == [output.supports for output in expected]
