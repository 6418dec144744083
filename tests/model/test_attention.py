"""MLA: its equations by hand, and its absorbed form over the cache against the expanded one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leanseek.kernels.rope import inverse_frequencies, rotations, yarn_mscale
from leanseek.model.attention import LatentAttention, absorb_up_to
from leanseek.model.cache import CacheSpec, ContiguousCache
from leanseek.model.config import ModelConfig, load_preset
from leanseek.model.segments import Segments

YARN = {
    "type": "yarn",
    "factor": 4,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 0.7,
}
V32 = {"model_type": "deepseek_v32", "q_lora_rank": 6, "index_n_heads": 3, "index_head_dim": 6, "index_topk": 4}
SHAPES = [
    {},
    {"q_lora_rank": 6},
    {"rope_scaling": YARN},
    {"num_attention_heads": 1, "v_head_dim": 3},
    {"q_lora_rank": 6, "kv_lora_rank": 11, "qk_nope_head_dim": 5},
    V32,
]


def make_attention(config: ModelConfig, seed: int = 0) -> LatentAttention:
    attention = LatentAttention(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in attention.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + name.endswith("norm.weight"))
    return attention


def turns(config: ModelConfig, segments: Segments) -> Tensor:
    frequencies = inverse_frequencies(config.qk_rope_head_dim, config.rope_theta, config.yarn)
    magnitude = yarn_mscale(config.yarn, "mscale") / yarn_mscale(config.yarn, "mscale_all_dim")
    return rotations(segments.positions_T, frequencies, magnitude)


def make_cache(config: ModelConfig, rows: int, capacity: int = 40) -> ContiguousCache:
    width = config.cache_width + config.index_head_dim
    return ContiguousCache([CacheSpec("latent", width, "float32")], rows, capacity)


def agree(a: Tensor, b: Tensor) -> bool:
    """Within 1e-5 of the values' norm: the roundings of a hundred products or so in fp32, another order of them."""
    return float((a - b).norm()) < 1e-5 * float(b.norm())


def hidden(tokens: int, config: ModelConfig, seed: int = 3) -> Tensor:
    return torch.randn(tokens, config.hidden_size, generator=torch.Generator().manual_seed(seed))


def by_hand(attention: LatentAttention, config: ModelConfig, x_TD: Tensor) -> Tensor:
    """The V2 report's equations, head by head and query by query."""

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + config.rms_norm_eps) * weight

    def turn(x: Tensor, position: int) -> Tensor:
        factors = turns(config, Segments.single(position + 1))[position]
        return torch.view_as_real(torch.view_as_complex(x.reshape(-1, 2).clone()) * factors).reshape(-1)

    nope, rope, value, latent = (
        config.qk_nope_head_dim,
        config.qk_rope_head_dim,
        config.v_head_dim,
        config.kv_lora_rank,
    )
    rows = []
    keys_values = attention.kv_b_proj.weight.view(config.num_attention_heads, nope + value, latent)
    stored = x_TD @ attention.kv_a_proj_with_mqa.weight.T
    c_TL = norm(stored[:, :latent], attention.kv_a_layernorm.weight)
    for t in range(len(x_TD)):
        if config.q_lora_rank is None:
            q = attention.q_proj.weight @ x_TD[t]
        else:
            q = attention.q_b_proj.weight @ norm(attention.q_a_proj.weight @ x_TD[t], attention.q_a_layernorm.weight)
        outs = []
        for head, q_head in enumerate(q.view(-1, nope + rope)):
            scores = []
            for s in range(t + 1):
                k_nope = keys_values[head, :nope] @ c_TL[s]
                k_rope = turn(stored[s, latent:], s)
                scores.append(q_head[:nope] @ k_nope + turn(q_head[nope:], t) @ k_rope)
            temperature = yarn_mscale(config.yarn, "mscale_all_dim") ** 2
            shares = torch.softmax(torch.stack(scores) * (nope + rope) ** -0.5 * temperature, 0)
            outs.append(sum(share * (keys_values[head, nope:] @ c) for share, c in zip(shares, c_TL, strict=False)))
        rows.append(attention.o_proj.weight @ torch.cat(outs))
    return torch.stack(rows)


@pytest.mark.parametrize("changes", SHAPES[:5])
@torch.no_grad()
def test_it_computes_the_reports_equations(make_config, changes):
    config = make_config(**changes)
    attention = make_attention(config)
    x_TD, segments = hidden(6, config), Segments.single(6)
    out = attention(x_TD, turns(config, segments), segments, None, 0)
    assert torch.allclose(out, by_hand(attention, config, x_TD), atol=1e-4)


# Over a cache, in one form and in the other.
forms = pytest.mark.parametrize("absorb_up_to", [1 << 30, 0], ids=["absorbed", "expanded"])


@forms
@pytest.mark.parametrize("lengths", [(5,), (1, 1, 1), (7, 1, 4), (6, 6)])
@pytest.mark.parametrize("changes", SHAPES)
@torch.no_grad()
def test_absorbed_is_expanded(make_config, changes, lengths, absorb_up_to):
    config = make_config(**changes)
    attention = make_attention(config)
    attention.absorb_up_to = absorb_up_to
    x_TD = hidden(sum(lengths), config)
    plain = Segments.packed(lengths)
    cached = Segments(lengths, cached_lengths=(0,) * len(lengths))
    expanded = attention(x_TD, turns(config, plain), plain, None, 0)
    over_cache = attention(x_TD, turns(config, cached), cached, make_cache(config, len(lengths)), 0)
    assert agree(over_cache, expanded)


@forms
@pytest.mark.parametrize("changes", SHAPES)
@torch.no_grad()
def test_they_agree_at_every_cached_length(make_config, changes, absorb_up_to):
    config = make_config(**changes)
    attention = make_attention(config)
    attention.absorb_up_to = absorb_up_to
    x_TD, whole = hidden(36, config), Segments.single(36)
    expected = attention(x_TD, turns(config, whole), whole, None, 0)
    cache, got = make_cache(config, 1), []
    for done in range(36):
        part = Segments((1,), cached_lengths=(done,))
        got.append(attention(x_TD[done : done + 1], turns(config, part), part, cache, 0))
        assert agree(got[-1], expected[done : done + 1])


@forms
@pytest.mark.parametrize("cuts", [(1,) * 12, (5, 7), (3, 1, 8), (11, 1)])
@pytest.mark.parametrize("changes", SHAPES)
@torch.no_grad()
def test_chunks_and_single_tokens_give_what_the_whole_gives(make_config, changes, cuts, absorb_up_to):
    config = make_config(**changes)
    attention = make_attention(config)
    attention.absorb_up_to = absorb_up_to
    x_TD, whole = hidden(12, config), Segments.single(12)
    expected = attention(x_TD, turns(config, whole), whole, None, 0)
    cache, done, pieces = make_cache(config, 1), 0, []
    for cut in cuts:
        part = Segments((cut,), cached_lengths=(done,))
        pieces.append(attention(x_TD[done : done + cut], turns(config, part), part, cache, 0))
        done += cut
    assert agree(torch.cat(pieces), expected)


@torch.no_grad()
def test_decoding_one_token_never_rebuilds_the_cached_keys(make_config):
    config = make_config()
    attention = make_attention(config)
    cache, x_TD = make_cache(config, 1), hidden(30, config)
    first = Segments.single(29)
    attention(x_TD[:29], turns(config, first), first, cache, 0)
    rebuilt: list[int] = []
    attention.kv_b_proj.register_forward_hook(lambda module, inputs, output: rebuilt.append(inputs[0].shape[0]))
    part = Segments((1,), cached_lengths=(29,))
    attention(x_TD[29:], turns(config, part), part, cache, 0)
    assert not rebuilt
    attention.absorb_up_to = 0
    attention(x_TD[29:], turns(config, part), part, cache, 0)
    assert rebuilt == [30]


def test_many_new_tokens_are_not_absorbed():
    assert absorb_up_to(load_preset("deepseek-v3")) == absorb_up_to(load_preset("deepseek-v2-lite")) == 512
    assert absorb_up_to(load_preset("laptop")) == 32


@forms
@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, V32])
def test_rows_with_different_pasts_may_each_go_on_by_a_different_number_of_tokens(make_config, changes, absorb_up_to):
    config = make_config(**changes)
    attention = make_attention(config)
    attention.absorb_up_to = absorb_up_to
    pasts, news = (5, 1, 9), (2, 6, 1)
    texts = [hidden(past + new, config, seed) for seed, (past, new) in enumerate(zip(pasts, news, strict=True))]
    cache = make_cache(config, 3)
    before, after = Segments(pasts), Segments(news, cached_lengths=pasts)
    attention(torch.cat([x[:p] for x, p in zip(texts, pasts, strict=True)]), turns(config, before), before, cache, 0)
    got = attention(
        torch.cat([x[p:] for x, p in zip(texts, pasts, strict=True)]), turns(config, after), after, cache, 0
    )
    start = 0
    for x, past, new in zip(texts, pasts, news, strict=True):
        alone = Segments.single(past + new)
        expected = attention(x, turns(config, alone), alone, None, 0)[past:]
        assert agree(got[start : start + new], expected)
        start += new


@torch.no_grad()
def test_only_the_latent_and_the_turned_rope_key_are_stored(make_config):
    config = make_config()
    attention = make_attention(config)
    x_TD, segments = hidden(5, config), Segments.single(5)
    cache = make_cache(config, 1)
    attention(x_TD, turns(config, segments), segments, cache, 0)
    stored = attention.kv_a_proj_with_mqa(x_TD)
    kept = cache.read(0, 5, segments)[0]
    assert kept.shape == (5, config.kv_lora_rank + config.qk_rope_head_dim)
    assert torch.allclose(kept[:, : config.kv_lora_rank], attention.kv_a_layernorm(stored[:, : config.kv_lora_rank]))
    assert not torch.allclose(kept[1:, config.kv_lora_rank :], stored[1:, config.kv_lora_rank :])
    assert torch.allclose(kept[0, config.kv_lora_rank :], stored[0, config.kv_lora_rank :])  # position 0 turns by 0


def test_the_softmax_scale_is_v3s(make_config):
    yarn = {**YARN, "factor": 40, "original_max_position_embeddings": 4096, "mscale_all_dim": 1.0}
    config = make_config(qk_nope_head_dim=128, qk_rope_head_dim=64, rope_scaling=yarn)
    assert LatentAttention(config).scale == pytest.approx(0.135234, abs=5e-7)
    config = config.replace(rope_scaling={**yarn, "mscale": 0.707, "mscale_all_dim": 0.707})
    assert LatentAttention(config).scale == pytest.approx(0.114721, abs=5e-7)
