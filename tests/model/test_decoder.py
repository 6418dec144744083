"""The decoder gives what the model itself gives, and every token the same bits whatever is read beside it."""

from __future__ import annotations

import copy

import pytest
import torch

from leanseek.errors import KernelError
from leanseek.kernels import native
from leanseek.model.cache import ContiguousCache
from leanseek.model.decoder import Decoder
from leanseek.model.experts import Routing
from leanseek.model.segments import Segments
from leanseek.model.transformer import Transformer

pytestmark = pytest.mark.skipif(bool(native.missing("generic")), reason=native.missing("generic"))

YARN = {
    "type": "yarn",
    "factor": 4,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
}
# Heads that share keys: in threes, alone, more than attend together; with a norm of each, with biases, with neither.
SHARED = {"head_dim": 16, "num_nextn_predict_layers": 0}
GROUPED = [
    {**SHARED, "model_type": "qwen3", "num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True},
    {**SHARED, "model_type": "qwen2", "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 48},
    {**SHARED, "model_type": "llama", "num_attention_heads": 40, "num_key_value_heads": 2},
]
SHAPES = [
    {},
    {"first_k_dense_replace": 0, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5},
    {"first_k_dense_replace": 3, "num_attention_heads": 1},
    {"n_shared_experts": 0, "norm_topk_prob": False, "kv_lora_rank": 33, "num_attention_heads": 40},
    {"rope_scaling": YARN, "rms_norm_eps": 0.01, "n_shared_experts": 2, "q_lora_rank": 6},
    {"hidden_size": 64, "kv_lora_rank": 28, "qk_rope_head_dim": 4, "v_head_dim": 16},
    {"model_type": "deepseek_v2", "num_nextn_predict_layers": 0, "scoring_func": "softmax", "topk_method": "greedy"},
    {
        "model_type": "deepseek_v2",
        "num_nextn_predict_layers": 0,
        "scoring_func": "softmax",
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "norm_topk_prob": True,
        "routed_scaling_factor": 3.0,
    },
]


def cache_of(model: Transformer, texts: int) -> ContiguousCache:
    return ContiguousCache(model.cache_specs(), texts, 64)


def drawn(count: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 320, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("lengths", [(5,), (3, 9, 1), (4, 4, 4), (7,) * 40, tuple(1 + i % 11 for i in range(50))])
@pytest.mark.parametrize("shape", SHAPES + GROUPED)
@torch.no_grad()
def test_it_gives_the_models_hidden_states_logits_and_experts(make_model, shape, lengths):
    """Sums are added up in another order: 2e-5 where hidden states are some units large."""
    model = make_model(**shape)
    decoder, caches = Decoder(model), [cache_of(model, len(lengths)) for _ in range(2)]
    done = (0,) * len(lengths)
    for step, new in enumerate((lengths, (1,) * len(lengths), (1,) * len(lengths), tuple(reversed(lengths)))):
        segments = Segments(new, cached_lengths=done if step else None)
        tokens, routings = drawn(sum(new), step), (Routing(), Routing())
        expected = model(tokens, segments, caches[0], routings[0])
        got = decoder(tokens, segments, caches[1], routings[1])
        assert torch.allclose(got, expected, atol=2e-5)
        assert torch.allclose(decoder.logits(got), model.logits(expected), atol=5e-5)
        assert torch.equal(decoder.decode(tokens, segments, caches[1]), decoder.logits(got))
        assert torch.allclose(caches[0].store, caches[1].store, atol=2e-5)
        for mine, theirs in zip(routings[1].experts, routings[0].experts, strict=True):
            assert torch.equal(mine.sort(-1).values, theirs.sort(-1).values)
        if model.mtp_layer is not None:
            expected = model.mtp(expected, tokens, segments, caches[0])
            assert torch.allclose(decoder.mtp(got, tokens, segments, caches[1]), expected, atol=2e-5)
        done = tuple(a + b for a, b in zip(done, new, strict=True))


@pytest.mark.parametrize("shape", SHAPES[:6] + GROUPED)
@torch.no_grad()
def test_a_token_has_the_same_bits_in_any_company(make_model, monkeypatch, shape):
    """Alone and among others, in one piece and cut anywhere, by one thread and by two that split tokens or weights."""
    model, lengths, threads = make_model(**shape), (40, 7, 23, 1, 30), torch.get_num_threads()
    decoder, texts = Decoder(model), [drawn(length, seed) for seed, length in enumerate(lengths)]
    together = decoder(torch.cat(texts), Segments(lengths), cache_of(model, len(lengths))).split(lengths)
    generator = torch.Generator().manual_seed(1)
    try:
        for count, near in ((1, 1 << 30), (2, 1 << 30), (2, 0)):
            torch.set_num_threads(count)
            monkeypatch.setattr("leanseek.kernels.stack.NEAR_BYTES", near)
            decoder = Decoder(copy.deepcopy(model))  # whose weights are laid out anew
            for text, expected in zip(texts, together, strict=True):
                cache, at, pieces = cache_of(model, 1), 0, []
                while at < len(text):
                    size = min(int(torch.randint(1, 20, (), generator=generator)), len(text) - at)
                    segments = Segments((size,), cached_lengths=(at,))
                    pieces.append(decoder(text[at : at + size], segments, cache))
                    at += size
                assert torch.equal(torch.cat(pieces), expected)
                assert torch.equal(decoder.logits(expected)[-1:], decoder.logits(expected[-1:]))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "part",
    [
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.1.mlp.gate.weight",
        "model.layers.1.mlp.gate.e_score_correction_bias",
        "model.layers.2.mlp.experts.down_proj",
        "model.layers.0.self_attn.kv_b_proj.weight",
        "model.layers.0.input_layernorm.weight",
    ],
)
def test_it_follows_weights_that_change(make_model, part):
    model = make_model()
    decoder, other = Decoder(model), Decoder(model)
    one = drawn(9, 3), Segments((9,))
    with torch.inference_mode():
        before = decoder.logits(decoder(*one, cache_of(model, 1)))
    with torch.no_grad():
        model.get_parameter(part).mul_(-1.5) if part.endswith(("weight", "proj")) else model.get_buffer(part).neg_()
    with torch.inference_mode():
        after = decoder.logits(decoder(*one, cache_of(model, 1)))
        expected = model.logits(model(*one))
        assert torch.equal(after, other.logits(other(*one, cache_of(model, 1)))), "they share the panels"
    assert torch.allclose(after, expected, atol=5e-5)
    assert not torch.allclose(after, before, atol=1e-3)


def test_a_wrong_call_is_refused(make_model):
    decoder = Decoder(make_model())
    with torch.inference_mode():
        for tokens, start in ((torch.tensor([320]), 0), (torch.tensor([-1]), 0), (torch.tensor([5]), 64)):
            with pytest.raises(KernelError, match="none of the vocabulary, or a text is longer"):
                decoder(tokens, Segments((1,), cached_lengths=(start,)), cache_of(decoder.model, 1))


def test_it_says_which_models_it_is_for(make_model, monkeypatch):
    assert Decoder.suits(make_model()) and Decoder.suits(make_model(q_lora_rank=6))
    assert not Decoder.suits(make_model().bfloat16())
    assert all(Decoder.suits(make_model(**shape)) for shape in GROUPED)
    assert not Decoder.suits(make_model(**{**GROUPED[0], "head_dim": 24}))
    assert not Decoder.suits(make_model(**{**GROUPED[0], "attention_bias": True}))
    with monkeypatch.context() as patched:
        patched.setattr("leanseek.model.decoder.MOST_WEIGHTS", 1000)
        assert not Decoder.suits(make_model())
    monkeypatch.setattr("leanseek.model.decoder.chosen", lambda op: None)
    assert not Decoder.suits(make_model())
