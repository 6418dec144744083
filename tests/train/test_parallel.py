"""Many processes train as one does: loss, gradients, router bias and weights after three steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import leanseek.train.optimisers as optimisers
from leanseek.data.batches import TokenStream
from leanseek.model.config import ModelConfig
from tests.train.together import alone, exact, together

STREAM = TokenStream(torch.randint(0, 320, (900,), generator=torch.Generator().manual_seed(0)), 16, 4, 0, bos_id=0)
SETTINGS = {"steps": 3, "micro_tokens": 32, "balance_rate": 0.01, "optimiser": {"clip": 0.5, "weight_decay": 0.1}}


# AdamW divides a gradient by its own size: where that is rounding alone, so is the direction of the step.
NOISE = 1e-6


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """fp32 sums in another order differ by some 1e-7; 1e-5 is what three steps may make of it."""
    assert one.keys() == other.keys()
    for name in one:
        close = torch.isclose(one[name], other[name], rtol=1e-5, atol=1e-5)
        noise = second[name].sqrt() < NOISE if name in second else torch.zeros_like(close)
        assert (close | noise).all() and (~close).sum() < 10, name


def compare(tmp_path: Path, config: Any, world: int, batches: list[Any], settings: Any, **parallel: Any) -> None:
    before = optimisers._iteration_dtype
    exact()
    try:
        single = alone(config, batches, settings)
    finally:
        optimisers._iteration_dtype = before
    many = together(tmp_path, world, config, batches, settings, **parallel)
    for one, other in zip(single["metrics"], many["metrics"], strict=True):
        assert other == pytest.approx(one, rel=1e-5)
    same(single["gradients"], many["gradients"], {})
    same(single["weights"], many["weights"], single["state"]["optimiser"]["second"])
    for group in ("momentum", "first", "second"):
        same(single["state"]["optimiser"][group], many["state"]["optimiser"][group], {})
    assert many["tokens"] == single["tokens"] and many["flops"] == single["flops"]


def batches_of(stream: TokenStream, count: int = 3) -> list[Any]:
    return [stream.batch(step) for step in range(count)]


def test_two_ranks_that_share_experts_and_shards_train_as_one(tmp_path, make_config):
    settings = SETTINGS | {"ema": 0.5}  # the weights that are compared are then the mean's
    compare(tmp_path, make_config(n_group=4, topk_group=2), 2, batches_of(STREAM), settings, experts=2, shards=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "parallel"),
    [
        (2, {}),
        (2, {"shards": 2}),
        (2, {"experts": 2}),
        (4, {"experts": 2, "shards": 4}),
        (4, {"experts": 4, "shards": 2}),
        (4, {"experts": 2, "shards": 2}),
    ],
)
def test_however_ranks_share_they_train_as_one(tmp_path, make_config, world, parallel):
    settings = SETTINGS | {"recompute": world == 4}
    compare(tmp_path, make_config(), world, batches_of(STREAM), settings, **parallel)


@pytest.mark.slow
def test_a_rank_that_no_token_wants_waits_for_nobody(tmp_path, make_config):
    few = TokenStream(STREAM.tokens, 1, 4, 0)
    compare(tmp_path, make_config(), 4, batches_of(few), SETTINGS, experts=4)


@pytest.mark.slow
def test_ranks_that_get_no_text_of_a_batch_lend_their_experts(tmp_path, make_config):
    batches = [STREAM.take(0, 3), STREAM.take(3, 1), STREAM.take(4, 2)]
    compare(tmp_path, make_config(), 4, batches, SETTINGS | {"micro_tokens": 16}, experts=2, shards=2)


@pytest.mark.parametrize("schedule", ["1f1b", "dualpipev"])
def test_a_pipeline_of_two_ranks_trains_as_one(tmp_path, make_config, schedule):
    """Micro-batches are of unequal length, and MTP learns from fewer tokens than the main head."""
    batches = [STREAM.take(0, 4), STREAM.take(4, 4), STREAM.take(8, 6)]
    settings = SETTINGS | {"micro_tokens": 24}
    compare(tmp_path, make_config(num_hidden_layers=4), 2, batches, settings, pipeline=2, schedule=schedule)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("schedule", ["1f1b", "zbv", "dualpipev"])
@pytest.mark.parametrize("share", [{"experts": 2}, {"shards": 2}, {"experts": 2, "shards": 2}])
def test_a_pipeline_with_experts_and_shards_trains_as_one(tmp_path, make_config, share, schedule, recompute):
    batches = [STREAM.take(0, 8), replace(STREAM.take(8, 8), mtp=False), STREAM.take(16, 9)]
    settings = SETTINGS | {"micro_tokens": 16, "recompute": recompute}
    compare(tmp_path, make_config(num_hidden_layers=4), 4, batches, settings, pipeline=2, schedule=schedule, **share)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["zbv", "dualpipev"])
def test_documents_apart_and_too_few_micro_batches_make_no_difference(tmp_path, make_config, schedule):
    """Documents of a window are texts of unequal length, which the balance loss would weigh by their parts: there is
    none here. A batch too small for the pipeline is filled up."""
    tokens = STREAM.tokens.clone()
    tokens[::7] = 0
    stream = TokenStream(tokens, 16, 4, 0, bos_id=0, masked=True)
    batches = [stream.take(0, 4), stream.take(4, 1), stream.take(5, 3)]
    settings = SETTINGS | {"micro_tokens": 16}
    compare(
        tmp_path,
        make_config(num_hidden_layers=4, first_k_dense_replace=4),
        2,
        batches,
        settings,
        pipeline=2,
        schedule=schedule,
    )


@pytest.mark.slow
def test_a_head_that_is_the_embedding_learns_at_both_ends_of_a_pipeline(tmp_path):
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, "head_dim": 16, "vocab_size": 320, "rms_norm_eps": 1e-6}
    more = {"max_position_embeddings": 128, "rope_theta": 1e4, "tie_word_embeddings": True}
    config = ModelConfig.from_dict({"model_type": "qwen3", **shape, **heads, **more})
    compare(tmp_path, config, 2, batches_of(STREAM), SETTINGS, pipeline=2)
