"""The decoder of packed weights gives what the model gives, and every token the same bits in any company."""

from __future__ import annotations

import pytest
import torch

from leanseek.checkpoint.directory import save_model
from leanseek.checkpoint.packed import PackedConversion, load_packed
from leanseek.engine.blocks import Blocks
from leanseek.engine.engine import Engine
from leanseek.engine.paged_cache import PagedCache
from leanseek.engine.request import SamplingParams
from leanseek.kernels import native, registry
from leanseek.kernels.invariance import invariant
from leanseek.model import decoder as decoder_module
from leanseek.model.cache import ContiguousCache
from leanseek.model.decoder import Decoder
from leanseek.model.experts import Routing
from leanseek.model.layers import LowRank
from leanseek.model.segments import Segments

pytestmark = pytest.mark.skipif(bool(native.missing("generic")), reason=native.missing("generic"))

# Widths of whole panels, heads of which some are no multiple of a register's lanes.
WIDE = {
    "hidden_size": 96,
    "kv_lora_rank": 48,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 6,
    "v_head_dim": 32,
    "num_attention_heads": 3,
    "max_position_embeddings": 512,
    "num_nextn_predict_layers": 0,
    "moe_intermediate_size": 40,
    "routed_scaling_factor": 1.5,
}
SHAPES = {
    "V2": {"model_type": "deepseek_v2", "topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False},
    "V2 with groups": {
        **{"model_type": "deepseek_v2", "topk_method": "group_limited_greedy", "scoring_func": "softmax"},
        **{"n_group": 4, "topk_group": 2, "q_lora_rank": 40, "norm_topk_prob": True},
    },
    "V3": {"n_group": 4, "topk_group": 2, "q_lora_rank": 128, "n_shared_experts": 2},
    "dense": {"first_k_dense_replace": 3, "num_attention_heads": 20},
    "no shared experts": {"n_shared_experts": 0, "num_nextn_predict_layers": 1, "num_attention_heads": 18},
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory, make_model):
    """Return a function that gives packed models: never change them."""
    known = {}

    def make(shape, form):
        if (shape, form) not in known:
            folder = tmp_path_factory.mktemp("packed")
            with torch.inference_mode(False):  # else decoders could not see whether its weights change
                save_model(make_model(**{**WIDE, **SHAPES[shape]}), folder / "plain")
                PackedConversion(folder / "plain", folder / form, form).run()
                known[shape, form] = load_packed(folder / form, form)
        return known[shape, form]

    return make


def caches(model, lengths, tables):
    """Return two caches with blocks of 32 tokens, in use on these tables."""
    specs = model.cache_specs()[: model.config.num_hidden_layers]
    both = [PagedCache(specs, Blocks(64, 32).count, 32) for _ in range(2)]
    for cache in both:
        cache.clear(range(64))
        cache.use(tables)
    return both


@pytest.mark.parametrize("variant", native.VARIANTS)
@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_gives_the_models_logits_and_experts(packed, monkeypatch, shape, form, variant):
    if native.missing(variant):
        pytest.skip(native.missing(variant))
    monkeypatch.setenv("LEANSEEK_KERNELS", variant)
    registry.choose.cache_clear()
    model, lengths = packed(shape, form), [3, 300, 31, 32, 1, 40, 2]  # the second has keys for three chunks
    tables, free = [], iter([(7 * i) % 64 for i in range(64)])
    for length in lengths:
        tables.append([next(free) for _ in range(-(-(length + 4) // 32))])
    assert Decoder.suits(model)
    decoder, (one, other) = Decoder(model), caches(model, lengths, tables)
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        tokens = torch.randint(0, 320, (sum(lengths),), generator=generator)
        for cache in (one, other):
            model(tokens, Segments(tuple(lengths)), cache)
        positions = torch.tensor(lengths)
        for _ in range(3):
            tokens, longest = torch.randint(0, 320, (len(lengths),), generator=generator), int(positions.max()) + 1
            routings = Routing(), Routing()
            wanted = model.logits(model(tokens, Segments.decode(positions, longest, False), one, routings[0]))
            got = decoder.logits(decoder(tokens, Segments.decode(positions, longest, False), other, routings[1]))
            assert len(routings[0].experts) == len(routings[1].experts) == len(model.moe_layers)
            for own, found in zip(*(routing.experts for routing in routings), strict=True):
                assert (own.sort(-1).values == found.sort(-1).values).float().mean() > 0.6  # of seven rows
            # Queries and shares are rounded to bf16 here, and int8 numbers fall to either side of a boundary: with
            # weights as lively as these 1 to 2% a layer, beside 3 to 40% that packing itself costs them. Where a
            # choice of experts is a tie a row may jump, so the median row is looked at.
            error = (got - wanted).norm(dim=-1) / wanted.norm(dim=-1)
            assert error.median() < 0.06
            positions = positions + 1
    registry.choose.cache_clear()


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("shape", ["V2", "V3", "no shared experts"])
@torch.inference_mode()
def test_a_token_has_the_same_bits_in_any_company(packed, monkeypatch, shape, form):
    """Alone and among others, in one piece and cut anywhere, by any number of threads that split tokens or weights."""
    model, lengths, threads = packed(shape, form), (140, 7, 23, 1, 300), torch.get_num_threads()
    decoder, generator = Decoder(model), torch.Generator().manual_seed(1)
    texts = torch.randint(0, 320, (sum(lengths),), generator=generator).split(lengths)

    def cache(rows):
        return ContiguousCache(model.cache_specs(), rows, 512)

    with invariant(True):
        together = decoder(torch.cat(texts), Segments(lengths), cache(len(lengths))).split(lengths)
        try:
            for count, near in ((1, 0), (2, 0), (3, 1 << 30)):
                torch.set_num_threads(count)
                monkeypatch.setattr("leanseek.kernels.stack.NEAR_BYTES", near)
                decoder_module._held.clear()  # weights are laid out anew
                for text, expected in zip(texts, together, strict=True):
                    own, at, pieces = cache(1), 0, []
                    while at < len(text):
                        size = min(int(torch.randint(1, 90, (), generator=generator)), len(text) - at)
                        pieces.append(decoder(text[at : at + size], Segments((size,), cached_lengths=(at,)), own))
                        at += size
                    assert torch.equal(torch.cat(pieces), expected)
                    again = decoder.decode(text[-1:], Segments((1,), cached_lengths=(len(text) - 1,)), own)
                    assert torch.equal(again, decoder.logits(expected)[-1:])
        finally:
            torch.set_num_threads(threads)
            decoder_module._held.clear()


@torch.inference_mode()
def test_long_prompts_of_an_engine_that_need_not_repeat_bits_are_the_models(packed):
    model, tokens = packed("V3", "int8"), torch.arange(40)
    decoder, caches = Decoder(model), [ContiguousCache(model.cache_specs(), 1, 64) for _ in range(2)]
    assert torch.equal(decoder(tokens, Segments((40,)), caches[0]), model(tokens, Segments((40,)), caches[1]))


@torch.inference_mode()
def test_the_mtp_layer_gives_what_the_models_own_gives(packed):
    model, tokens = packed("no shared experts", "int8"), torch.arange(40)
    decoder, caches = Decoder(model), [ContiguousCache(model.cache_specs(), 1, 64) for _ in range(2)]
    with invariant(True):
        hidden_TD = model(tokens, Segments((40,)), caches[0])
        wanted = model.mtp(hidden_TD, tokens, Segments((40,)), caches[0])
        got = decoder.mtp(hidden_TD, tokens, Segments((40,)), caches[1])
    error = (got - wanted).norm(dim=-1) / wanted.norm(dim=-1)
    assert error.median() < 0.06


def test_a_low_rank_update_beside_a_packed_weight_counts(packed):
    model, tokens = packed("dense", "int8"), torch.arange(9)
    decoder, projection = Decoder(model), model.model.layers[0].self_attn.o_proj
    with torch.inference_mode():
        before = decoder(tokens, Segments((9,)), ContiguousCache(model.cache_specs(), 1, 64))
    outputs, inputs = projection.shape
    projection.low_rank = LowRank(
        torch.nn.Parameter(torch.ones(1, inputs)), torch.nn.Parameter(torch.ones(outputs, 1)), 1
    )
    try:
        with torch.inference_mode():
            after = decoder(tokens, Segments((9,)), ContiguousCache(model.cache_specs(), 1, 64))
            wanted = model(tokens, Segments((9,)), ContiguousCache(model.cache_specs(), 1, 64))
        assert torch.equal(after, wanted) and not torch.allclose(after, before, atol=1e-2)
    finally:
        projection.low_rank = None


def test_an_engine_decodes_with_it(packed):
    model = packed("V2", "int8")
    params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    native_engine, torch_engine = (Engine(model, max_batch=2, max_context_tokens=64) for _ in range(2))
    assert isinstance(native_engine.runner.forward, Decoder)
    torch_engine.runner.forward = model
    wanted = torch_engine.generate(prompts, params)
    for got, other in zip(native_engine.generate(prompts, params), wanted, strict=True):
        same = sum(a == b for a, b in zip(got.token_ids, other.token_ids, strict=True))
        assert same >= 3  # until a near tie: the first is the prompt's, others agree by chance once in 320


def test_a_servers_replies_have_the_same_bits_in_any_company(packed):
    """By the engine that a server has: texts in blocks, prompts read in pieces, and no `--fast`."""
    model = packed("V3", "int4")
    params = SamplingParams(max_tokens=9, seed=3, ignore_eos=True, logprobs=2)
    prompts = [list(range(5, 5 + length)) for length in (3, 70, 150)]
    room = 1 << 22
    together = Engine(model, max_batch=3, cache_bytes=room)
    assert together.invariant and isinstance(together.runner.forward, Decoder)
    for prompt, found in zip(prompts, together.generate(prompts, params), strict=True):
        (alone,) = Engine(model, max_batch=1, cache_bytes=room).generate([prompt], params)
        assert alone.token_ids == found.token_ids and alone.logprobs == found.logprobs
