"""The formulas against the published figures of V3, the real module's parameters, and torch's own counter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import leanseek
from leanseek.model.cache import ContiguousCache
from leanseek.model.config import ModelConfig
from leanseek.model.count import (
    cache_bytes_per_token,
    causal_pairs,
    decode_flops_per_token,
    decode_parts,
    forward_flops,
    forward_flops_per_token,
    forward_parts,
    mtp_flops,
    parameters,
    sampling_flops,
    training_flops,
    training_flops_per_token,
    training_parts,
)
from leanseek.model.segments import Segments
from leanseek.model.transformer import Transformer

PRESETS = Path(leanseek.__file__).parent / "presets"
# Segments of one length, so that no padding is multiplied.
SEGMENTS, LENGTH = 3, 10


def preset(name: str) -> ModelConfig:
    return ModelConfig.from_file(PRESETS / f"{name}.json")


SMALL: dict[str, Any] = dict(
    vocab_size=50,
    hidden_size=24,
    num_hidden_layers=3,
    first_k_dense_replace=1,
    intermediate_size=40,
    moe_intermediate_size=12,
    n_routed_experts=6,
    n_shared_experts=1,
    num_experts_per_tok=2,
    num_attention_heads=3,
    kv_lora_rank=10,
    qk_nope_head_dim=6,
    qk_rope_head_dim=4,
    v_head_dim=8,
    num_nextn_predict_layers=1,
)
STUDENT = {name: SMALL[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")}
STUDENT |= {"num_attention_heads": 4, "num_key_value_heads": 2}


def small(**changes) -> ModelConfig:
    return ModelConfig(**{**SMALL, **changes})


# What differs between them: latent queries, no or many shared experts, all layers dense, widths that are equal or not.
CONFIGS = {
    "moe": small(),
    "latent queries": small(q_lora_rank=14, n_shared_experts=2, num_experts_per_tok=3),
    "no shared": small(n_shared_experts=0, v_head_dim=10, first_k_dense_replace=0),
    "dense": small(first_k_dense_replace=9, num_hidden_layers=2, num_attention_heads=1),
    "v2": ModelConfig.from_dict({**SMALL, "model_type": "deepseek_v2", "num_nextn_predict_layers": 0}),
    "indexer": ModelConfig.from_dict(
        {
            **SMALL,
            "model_type": "deepseek_v32",
            "q_lora_rank": 14,
            "index_n_heads": 3,
            "index_head_dim": 8,
            "index_topk": 4,
        }
    ),
    "student": ModelConfig.from_dict({**STUDENT, "model_type": "qwen3", "head_dim": 10}),
    "biased student": ModelConfig.from_dict({**STUDENT, "model_type": "llama", "attention_bias": True}),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def random_model(config: ModelConfig) -> Transformer:
    generator = torch.Generator().manual_seed(0)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def test_v3_has_its_published_size():
    counted = parameters(preset("deepseek-v3"))
    assert round(counted.total / 1e6) == 671_026
    assert round(counted.mtp / 1e7) == 1161
    assert round(counted.active / 1e6) == 37_552
    assert round(counted.active_without_embedding / 1e6) == 36_626


def test_v3_costs_its_published_flops_and_cache():
    config = preset("deepseek-v3")
    # arXiv 2505.09343, table 2: 250 GFLOP a token at 4K, causal; 70.272 kB of cache a token.
    assert training_flops_per_token(config, 4096) / 1e9 == pytest.approx(250.5, abs=0.05)
    assert cache_bytes_per_token(config) == 70_272
    assert cache_bytes_per_token(config, mtp=True) == 70_272 + 1152
    assert 3 * forward_flops_per_token(config, 4096) == pytest.approx(training_flops_per_token(config, 4096))


# Totals in millions, and cache bytes a token in bf16, by the facts published or worked out from published shapes.
@pytest.mark.parametrize(
    ("name", "total", "active", "mtp", "cache"),
    [
        ("deepseek-v2-lite", 15_706, 2_661, 0, 31_104),
        ("deepseek-v2", 235_741, 21_376, 0, 69_120),
        ("deepseek-v3", 671_026, 37_552, 11_610, 70_272),
        ("deepseek-v3.1", 671_026, 37_552, 11_610, 70_272),
        ("deepseek-v3.2", 671_026 + 852, 37_552 + 852, 11_610 + 14, 70_272 + 61 * 256),
    ],
)
def test_every_family_has_its_published_size(name, total, active, mtp, cache):
    counted = parameters(preset(name))
    assert [round(n / 1e6) for n in (counted.total, counted.active, counted.mtp)] == [total, active, mtp]
    assert cache_bytes_per_token(preset(name)) == cache


def test_v2_costs_its_published_flops_and_v32_its_fp8_cache():
    # arXiv 2505.09343, table 2: 155 GFLOP a token.
    assert training_flops_per_token(preset("deepseek-v2"), 4096) / 1e9 == pytest.approx(155.3, abs=0.05)
    assert cache_bytes_per_token(preset("deepseek-v3.2"), bytes_per_number=1) == 48_068


def test_tied_rows_are_counted_once_and_still_multiply():
    tied = ModelConfig.from_dict({**STUDENT, "model_type": "qwen3", "tie_word_embeddings": True})
    apart = ModelConfig.from_dict({**STUDENT, "model_type": "qwen3"})
    assert parameters(apart).total - parameters(tied).total == 50 * 24
    assert parameters(apart).active_without_embedding == parameters(tied).active_without_embedding
    with torch.device("meta"):
        assert parameters(tied).total == sum(p.numel() for p in Transformer(tied).parameters())


PRESET_NAMES = ["deepseek-v2-lite", "deepseek-v2", "deepseek-v3", "deepseek-v3.2", "evening", "laptop", "one-gpu"]


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_parameters_are_those_of_the_module(name):
    config = preset(name)
    with torch.device("meta"):
        model = Transformer(config)
    of_mtp = f"model.layers.{config.num_hidden_layers}."
    main = sum(p.numel() for key, p in model.named_parameters() if not key.startswith(of_mtp))
    mtp = sum(p.numel() for key, p in model.named_parameters() if key.startswith(of_mtp))
    counted = parameters(config)
    assert (counted.total, counted.mtp) == (main, mtp)


@each_config
def test_parts_are_those_of_the_module(config):
    with torch.device("meta"):
        model = Transformer(config)
    main = {key: p.numel() for key, p in model.named_parameters() if f"layers.{config.num_hidden_layers}." not in key}

    def part(text: str) -> int:
        return sum(count for key, count in main.items() if text in key)

    counted = parameters(config)
    assert counted.embedding == part("embed_tokens") == counted.head == part("lm_head")
    assert counted.attention == part("self_attn")
    assert counted.routed_experts == part("mlp.experts.")
    assert counted.shared_experts == part("shared_experts")
    assert counted.router == part("mlp.gate.weight")
    assert counted.dense_mlp == part("mlp.") - part("mlp.experts.") - part("shared_experts") - part("mlp.gate.")
    assert counted.norms == part("layernorm.weight") - part("_a_layernorm") + part("model.norm")
    assert counted.as_dict()["total"] == sum(main.values()) == counted.total


def test_one_gpu_is_in_the_range_it_was_made_for():
    counted = parameters(preset("one-gpu"))
    assert 0.5e9 < counted.total < 1e9
    assert 100e6 < counted.active_without_embedding < 150e6


# The counter does not know the CPU's fused attention, which runs where q, k and v are equally wide: attention
# is made of plain products here. They multiply the masked half too, so the formula is given all pairs and not
# the causal half.
@each_config
@sdpa_kernel(SDPBackend.MATH)
def test_forward_flops_are_what_torch_counts(config):
    pairs = SEGMENTS * LENGTH**2
    tokens = SEGMENTS * LENGTH
    model = random_model(config)
    # With gradient: the form of the experts that runs without, for few tokens, is not known to the counter either.
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        model.logits(model(torch.arange(tokens), Segments.packed([LENGTH] * SEGMENTS)))
    assert counter.get_total_flops() == forward_flops(config, tokens=tokens, pairs=pairs)


@each_config
@pytest.mark.parametrize("mtp", [False, True], ids=["main", "with MTP"])
@sdpa_kernel(SDPBackend.MATH)
def test_training_flops_are_what_torch_counts(config, mtp):
    if mtp and not config.num_nextn_predict_layers:
        assert training_flops(config, tokens=9, pairs=9, mtp=True) == training_flops(config, tokens=9, pairs=9)
        return
    pairs = SEGMENTS * LENGTH**2
    tokens, head_tokens = SEGMENTS * LENGTH, 7
    segments = Segments.packed([LENGTH] * SEGMENTS)
    model = random_model(config)
    ids = torch.arange(tokens)
    with FlopCounterMode(display=False) as counter:
        hidden_TD = model(ids, segments)
        loss = model.logits(hidden_TD[:head_tokens]).logsumexp(-1).sum()
        if mtp:
            loss = loss + model.logits(model.mtp(hidden_TD, ids, segments)[:head_tokens]).logsumexp(-1).sum()
        loss.backward()
    expected = training_flops(config, tokens=tokens, pairs=pairs, head_tokens=head_tokens, mtp=mtp)
    assert counter.get_total_flops() == expected


@each_config
@sdpa_kernel(SDPBackend.MATH)
def test_decode_flops_are_what_torch_counts(config):
    model = random_model(config)
    cached = 5
    cache = ContiguousCache(model.cache_specs(), 1, 16)
    with torch.no_grad():
        model(torch.arange(cached), Segments.single(cached), cache)
        with FlopCounterMode(display=False) as counter:
            model.logits(model(torch.tensor([1]), Segments((1,), cached_lengths=(cached,)), cache))
    assert counter.get_total_flops() == decode_flops_per_token(config, cached + 1)


def test_sampling_is_prefills_and_decoding_steps():
    config = CONFIGS["latent queries"]
    expected = 0
    for prompt, replies in ((4, (1, 3)), (6, (2,))):
        expected += forward_flops(config, tokens=prompt, pairs=causal_pairs([prompt]), head_tokens=1)
        for reply in replies:
            # The token sampled last is never read.
            expected += sum(decode_flops_per_token(config, prompt + step) for step in range(1, reply))
    assert sampling_flops(config, [4, 6], [(1, 3), (2,)]) == expected


@each_config
def test_parts_sum_to_the_whole_and_are_those_that_the_model_has(config):
    read = {"tokens": 40, "pairs": 100, "head_tokens": 7}
    forward, training = forward_parts(config, **read), training_parts(config, **read, mtp=True)
    assert sum(forward.values()) == forward_flops(config, **read)
    assert sum(map(sum, training.values())) == training_flops(config, **read, mtp=True)
    assert ("indexer" in forward) == bool(config.index_topk)
    assert ("mtp" in training) == bool(config.num_nextn_predict_layers)
    assert all(
        back == (0 if part == "indexer" else 2 * ahead) for part, (ahead, back) in training.items() if part != "mtp"
    )
    decoded = decode_parts(config, 9)
    assert (
        sum(decoded.values()) == decode_flops_per_token(config, 9)
        and decoded["experts" if config.is_moe(config.num_hidden_layers - 1) else "dense"]
    )


def test_pairs_count_what_each_token_sees():
    assert causal_pairs([3]) == 1 + 2 + 3
    assert causal_pairs([3, 2], [0, 5]) == 1 + 2 + 3 + 6 + 7
    segments = Segments((4, 2), prefixes=(-1, 0))
    assert causal_pairs(segments.lengths, segments.first_positions) == 10 + 5 + 6


def test_without_an_mtp_layer_there_is_nothing_to_count():
    config = small(num_nextn_predict_layers=0)
    assert parameters(config).mtp == parameters(config).mtp_active == 0
    assert mtp_flops(config, tokens=5, pairs=15) == 0
