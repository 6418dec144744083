"""The layout of a recipe for many processes, without one: what the places say, added up."""

from __future__ import annotations

import pytest
import torch

from leanseek.model.transformer import Transformer
from leanseek.settings import load_recipe
from leanseek.stages import dry_run
from leanseek.train.spread import spread


def laid_out(config, world, **parallel):
    recipe = load_recipe("laptop", {f"parallel.{key}": value for key, value in parallel.items()})
    with torch.device("meta"):
        model = Transformer(config)
    shapes = [(name, tuple(one.shape)) for name, one in model.named_parameters()]
    return spread(recipe, config, shapes, world, 16), sum(one.numel() for one in model.parameters())


def test_one_copy_shared_by_all_adds_up_to_the_model(tiny_config):
    found, whole = laid_out(tiny_config, 2, experts=2, shards=2)
    assert found["rank_parameters_most"] + found["rank_parameters_least"] == whole
    assert found["rank_experts_per_layer"] == 4 and found["copies_of_experts"] == 1


def test_nothing_is_shared_where_nobody_says_so(tiny_config):
    found, whole = laid_out(tiny_config, 4)
    assert found["rank_parameters_most"] == found["rank_parameters_least"] == whole
    assert found["rank_exchanged_bytes_most"] == found["rank_gathered_bytes"] == 0


def test_a_pipeline_holds_every_layer_once_and_the_embedding_at_both_ends(make_config):
    config = make_config(num_hidden_layers=4)
    found, whole = laid_out(config, 2, pipeline=2)
    embedding = config.vocab_size * config.hidden_size
    assert found["rank_parameters_most"] + found["rank_parameters_least"] == whole + embedding
    assert 0 < found["pipeline_bubble_share"] < 0.5 and found["rank_gathered_bytes"] == 0
    assert found["pipeline"][0].startswith("ranks 0-0: embedding, layers 0-")
    folded, _ = laid_out(config, 2, pipeline=2, schedule="dualpipev")
    assert folded["rank_parameters_most"] + folded["rank_parameters_least"] == whole


def test_deepseek_v3_fits_on_2048_gpus():
    """As published: 16 x 128 ranks, each with 4 of the 256 experts of its layers, whose state two share."""
    found = dry_run(load_recipe("v3-671b-2048xh800"))
    assert (found["rank_experts_per_layer"], found["copies_of_experts"]) == (4, 2)
    assert found["rank_texts_per_step"] == found["rank_passes_per_step"] == 120
    assert found["planned_fits"] and 10e9 < found["planned_rank_bytes"]["total"] < 80e9
    assert found["pretrain_tokens"] == pytest.approx(14.8e12, rel=0.01)
    assert 25 < found["planned_step_s"] < 70
    each = found["planned_joules"] / found["pretrain_tokens"]
    assert found["planned_joules_per_token"] == pytest.approx(each) and "power limit" in found["planned_meter"]
    assert len(found["pipeline"]) == 16 and 0 < found["pipeline_bubble_share"] < 0.3
