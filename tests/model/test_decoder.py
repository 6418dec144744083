"""The decoder with merged weights gives what the model itself gives, step for step."""

from __future__ import annotations

import pytest
import torch

from leanseek.model.cache import ContiguousCache
from leanseek.model.decoder import Decoder
from leanseek.model.experts import Routing
from leanseek.model.segments import Segments
from leanseek.model.transformer import Transformer

YARN = {
    "type": "yarn",
    "factor": 4,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
}
SHAPES = [
    {},
    {"first_k_dense_replace": 0, "n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5},
    {"first_k_dense_replace": 3, "num_attention_heads": 1},
    {"n_shared_experts": 0, "norm_topk_prob": False},
    {"rope_scaling": YARN, "rms_norm_eps": 0.01, "n_shared_experts": 2},
]


def steps(model: Transformer, lengths: list[int], count: int) -> list[tuple[torch.Tensor, ...]]:
    """Prefill texts of these lengths, then decode with both; return (logits, experts) of the twins at each step."""
    generator = torch.Generator().manual_seed(len(lengths))
    caches = [
        ContiguousCache(model.cache_specs()[: model.config.num_hidden_layers], len(lengths), 64) for _ in range(2)
    ]
    decoder, found = Decoder(model), []
    with torch.inference_mode():
        tokens = torch.randint(0, 320, (sum(lengths),), generator=generator)
        for cache in caches:
            model(tokens, Segments(tuple(lengths)), cache)
        positions = torch.tensor(lengths)
        level = len(set(lengths)) == 1
        for _ in range(count):
            tokens = torch.randint(0, 320, (len(lengths),), generator=generator)
            longest = int(positions.max()) + 1
            routings = Routing(), Routing()
            hidden = model(tokens, Segments.decode(positions, longest, level), caches[0], routings[0])
            logits = decoder(tokens, positions, longest, level, caches[1], routings[1])
            experts = [r.stacked().sort(-1).values if r.experts else torch.empty(0) for r in routings]
            found.append((model.logits(hidden), logits.clone(), *experts))
            positions = positions + 1
    return found


@pytest.mark.parametrize("lengths", [[5], [3, 9, 1], [4, 4, 4], [7] * 40, [1 + i % 11 for i in range(50)]])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_gives_the_models_logits_and_experts(make_model, shape, lengths):
    for expected, got, experts, own in steps(make_model(**shape), lengths, 4):
        assert torch.allclose(got, expected, atol=2e-5)
        assert torch.equal(own, experts)


@pytest.mark.parametrize("part", ["lm_head", "model.embed_tokens", "model.norm", "model.layers.1.mlp.gate"])
def test_it_follows_weights_that_change(make_model, part):
    model = make_model()
    decoder = Decoder(model)
    cache = ContiguousCache(model.cache_specs()[:3], 1, 8)
    one = torch.tensor([5]), torch.tensor([0]), 1, True
    with torch.inference_mode():
        before = decoder(*one, cache).clone()
    with torch.no_grad():
        model.get_submodule(part).weight.mul_(-1.5)
    with torch.inference_mode():
        after = decoder(*one, cache).clone()
        expected = model.logits(model(one[0], Segments.single(1)))
    assert torch.allclose(after, expected, atol=2e-5)
    assert not torch.allclose(after, before, atol=1e-3)


def test_experts_and_the_routers_bias_are_read_where_they_are(make_model):
    model = make_model()
    decoder = Decoder(model)
    cache = ContiguousCache(model.cache_specs()[:3], 1, 8)
    one = torch.tensor([7]), torch.tensor([0]), 1, True
    with torch.inference_mode():
        decoder(*one, cache)
    with torch.no_grad():
        for layer in model.moe_layers:
            layer.experts.down_proj.mul_(3)
            layer.gate.e_score_correction_bias.neg_()
    with torch.inference_mode():
        got = decoder(*one, cache)
        expected = model.logits(model(torch.tensor([7]), Segments.single(1)))
    assert torch.allclose(got, expected, atol=2e-5)


def test_it_says_which_models_it_is_for(make_model):
    assert Decoder.suits(make_model())
    assert not Decoder.suits(make_model(q_lora_rank=6))
    assert not Decoder.suits(make_model(hidden_size=1024, num_attention_heads=64))
    assert not Decoder.suits(make_model().bfloat16())
