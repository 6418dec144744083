"""Batch invariance: a request's tokens and log-probabilities have the same bits alone and in any company."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

import leanseek.engine.engine as module
from leanseek.engine.disk import Disk
from leanseek.engine.engine import Engine
from leanseek.engine.paged_cache import PagedCache
from leanseek.engine.request import Output, SamplingParams
from leanseek.model.segments import Segments

SHAPES = {
    "latent": {},
    "latent, wider": {"hidden_size": 96, "kv_lora_rank": 32, "num_attention_heads": 3, "moe_intermediate_size": 40},
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
LONG = {"max_position_embeddings": 512}


def prompt(tokens: int, seed: int) -> list[int]:
    return torch.randint(3, 320, (tokens,), generator=torch.Generator().manual_seed(1000 + seed)).tolist()


def paged(model, blocks: int, **options) -> Engine:
    specs = model.cache_specs()[: model.config.num_hidden_layers + bool(options.get("drafts"))]
    room = blocks * module.BLOCK_TOKENS * PagedCache.bytes_per_token(specs)
    return Engine(model, cache_bytes=room, **options)


def asked(rng: random.Random, count: int) -> list[tuple[list[int], SamplingParams]]:
    """Requests of all kinds, many of which begin alike."""
    found = []
    for index in range(count):
        ids = prompt(rng.choice((0, 30, 61)), rng.randint(0, 1)) + prompt(rng.choice((1, 2, 9, 30)), index)
        kind = rng.choice(({"temperature": 0.0}, {}, {"temperature": 0.7, "top_p": 0.8}, {"top_k": 9, "min_p": 0.01}))
        params = SamplingParams(
            max_tokens=rng.randint(1, 24), seed=index, ignore_eos=True, logprobs=rng.choice((0, 0, 3)), **kind
        )
        found.append((ids, replace(params, n=rng.choice((1, 1, 2)))))
    return found


def same(got: Output, expected: Output) -> bool:
    """Whether two replies agree to the bit."""
    fields = ("token_ids", "logprobs", "top_logprobs", "prompt_logprobs")
    return all(getattr(got, name) == getattr(expected, name) for name in fields)


def in_company(engine: Engine, requests, rng: random.Random) -> dict[str, list[Output]]:
    """Serve requests that come one by one while others run."""
    finished: dict[str, list[Output]] = {}
    waiting = list(enumerate(requests))
    leave = engine._leave

    def noting(reasons):
        leave(reasons)
        for output in engine._finished:
            finished.setdefault(output.request_id, []).append(output)
        engine._finished.clear()

    engine._leave = noting
    while waiting or engine.has_work:
        for _ in range(rng.choice((0, 0, 1, 3))):
            if waiting:
                name, (ids, params) = waiting.pop(0)
                engine.add(ids, params, str(name))
        engine.step()
        engine.check_integrity()
    return {name: sorted(outputs, key=lambda one: one.index) for name, outputs in finished.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_reply_has_the_same_bits_in_any_company(make_model, monkeypatch, shape, dtype):
    rng = random.Random(f"{shape} {dtype}")
    model = make_model(**SHAPES[shape]).to(getattr(torch, dtype))
    requests = asked(rng, 10)
    alone = [paged(model, 40).generate([ids], params) for ids, params in requests]
    preempted = hits = 0
    for chunk, prefill, block, blocks in ((512, 8192, 32, 40), (16, 48, 8, 20), (7, 7, 8, 18)):
        monkeypatch.setattr(module, "CHUNK_TOKENS", chunk)
        monkeypatch.setattr(module, "PREFILL_TOKENS", prefill)
        monkeypatch.setattr(module, "BLOCK_TOKENS", block)
        engine = paged(model, blocks, max_batch=rng.choice((5, 8)))
        got = in_company(engine, requests, rng)
        preempted, hits = preempted + engine.scheduler.preempted, hits + engine.prefixes.hit_tokens
        for name, expected in enumerate(alone):
            assert all(same(*pair) for pair in zip(got[str(name)], expected, strict=True)), (name, chunk)
    assert preempted and hits, "the case must occur"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_long_texts_cut_anywhere_have_the_same_bits(make_model, monkeypatch, dtype):
    """Past the blocks in which keys are summed, and past what a product takes at once."""
    model = make_model(**LONG).to(getattr(torch, dtype))
    ids, params = prompt(333, 1), SamplingParams(max_tokens=40, seed=3, ignore_eos=True, prompt_logprobs=2, logprobs=1)
    expected = paged(model, 40).generate([ids], params)[0]
    for chunk in (100, 33, 5):
        monkeypatch.setattr(module, "CHUNK_TOKENS", chunk)
        monkeypatch.setattr(module, "PREFILL_TOKENS", chunk)
        got = paged(model, 40).generate([ids, prompt(200, 2), prompt(3, 3)], params)[0]
        assert same(got, expected), chunk
    whole = Engine(model, invariant=True).generate([ids, prompt(9, 2)], params)[0]
    assert same(whole, expected)


@pytest.mark.parametrize("drafts", [1, 3])
def test_drafting_changes_no_bit(make_model, drafts):
    model = make_model()
    requests = asked(random.Random(drafts), 6)
    requests = [(ids, replace(params, max_tokens=24, logprobs=0)) for ids, params in requests]
    alone = [paged(model, 40).generate([ids], params) for ids, params in requests]
    engine = paged(model, 60, drafts=drafts)
    got = engine.generate([ids for ids, _ in requests], [params for _, params in requests])
    assert engine.speculation.drafted > 0
    assert all(same(*pair) for pair in zip(got, [output for one in alone for output in one], strict=True))


def test_what_the_disk_has_kept_has_the_same_bits(make_model, tmp_path):
    model = make_model()
    params = SamplingParams(max_tokens=20, seed=1, ignore_eos=True, logprobs=0)
    first = prompt(50, 1)
    said = paged(model, 40).generate([first], params)[0]
    follow = [*first, *said.token_ids, *prompt(7, 2)]
    expected = paged(model, 40).generate([follow], params)[0]
    for run in range(2):
        disk = Disk(tmp_path, "model", 1 << 24)
        engine = paged(model, 40, disk=disk)
        if run == 0:
            engine.generate([first], params)
        else:
            got = engine.generate([follow], params)[0]
            assert got.cached_tokens > 60 and same(got, expected)
        disk.close()


def test_the_number_of_threads_changes_no_bit(make_model):
    model, threads = make_model(**SHAPES["latent, wider"]), torch.get_num_threads()
    requests = asked(random.Random(5), 5)

    def replies() -> list[Output]:
        return paged(model, 60).generate([ids for ids, _ in requests], [params for _, params in requests])

    expected = replies()
    try:
        torch.set_num_threads(2)
        assert all(same(*pair) for pair in zip(replies(), expected, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_a_reply_whose_numbers_break_changes_no_bit_of_the_others(make_model):
    model, bad = make_model(), 7
    rest = [([token for token in ids if token != bad], params) for ids, params in asked(random.Random(9), 6)]
    # Never drawn: what it would lead to is not the point.
    rest = [(ids, replace(params, logit_bias=((bad, -1e4),))) for ids, params in rest]
    alone = [paged(model, 40).generate([ids], params) for ids, params in rest]
    with torch.no_grad():
        model.model.embed_tokens.weight[bad] = float("nan")
    broken = ([*prompt(20, 3), bad], SamplingParams(max_tokens=5, ignore_eos=True))
    got = in_company(paged(model, 60), [rest[0], broken, *rest[1:]], random.Random(1))
    assert [output.finish_reason for output in got.pop("1")] == ["error"]
    for pair in zip((got[name] for name in sorted(got, key=int)), alone, strict=True):
        assert all(same(*replies) for replies in zip(*pair, strict=True))


@torch.no_grad()
def test_the_trainer_gives_the_same_log_probabilities_within_the_stated_bound(make_model):
    """The trainer expands keys and values; the engine never does. docs/numerics.md states the bound."""
    model = make_model(**LONG)
    ids = prompt(200, 1)
    output = paged(model, 40).generate([ids], SamplingParams(max_tokens=60, seed=2, ignore_eos=True, logprobs=0))[0]
    text = torch.tensor([*ids, *output.token_ids])
    logits = model.logits(model(text, Segments.single(len(text))))[len(ids) - 1 : -1]
    trained = torch.log_softmax(logits, -1).gather(1, torch.tensor(output.token_ids)[:, None]).squeeze(1)
    assert (trained - torch.tensor(output.logprobs)).abs().max() < 1e-5
