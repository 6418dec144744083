"""Which layers a pipeline's ranks have: every layer once, in order, the ends where they belong."""

from __future__ import annotations

import pytest

from leanseek.model.config import load_preset
from leanseek.sections.training import ParallelSettings
from leanseek.train.places import place
from leanseek.train.spans import EMBEDDING, Spans


def spans(config, pipeline=2, schedule="1f1b"):
    return Spans(config, ParallelSettings(pipeline=pipeline, schedule=schedule))


@pytest.mark.parametrize(
    ("pipeline", "schedule"), [(2, "1f1b"), (4, "1f1b"), (16, "1f1b"), (8, "zbv"), (16, "dualpipev")]
)
def test_every_layer_is_in_one_section_and_in_order(pipeline, schedule):
    found = spans(load_preset("deepseek-v3"), pipeline, schedule)
    assert [layer for layers in found.layers for layer in layers] == list(range(61))
    assert sorted(one for rank in range(pipeline) for one in found.of_rank(rank)) == list(range(found.count))
    loads = [sum(found.products[one] for one in found.of_rank(rank)) for rank in range(pipeline)]
    others = sorted(loads)[:-1]  # one rank has the heads
    assert max(others) < 1.5 * min(others)


def test_ends_that_share_the_embedding_are_on_one_rank_of_a_v_and_have_copies_elsewhere(make_config):
    config = make_config(num_hidden_layers=4)
    assert spans(config).holders(EMBEDDING) == (0, 1)
    assert spans(config, schedule="zbv").holders(EMBEDDING) == (0,)
    assert spans(make_config(num_nextn_predict_layers=0)).holders(EMBEDDING) == (0,)
    assert spans(config).holders("lm_head.weight") == (1,)
    assert spans(config).holders("model.layers.4.mlp.experts.down_proj") == (1,), "the MTP layer is at the end"


def test_places_hold_every_row_as_often_as_they_say(make_config):
    settings = ParallelSettings(pipeline=2, experts=2, shards=4)
    places = [place(rank, 16, settings, make_config()) for rank in range(16)]
    for name, rows in ((EMBEDDING, 13), ("model.layers.1.mlp.experts.down_proj", 8), ("model.norm.weight", 5)):
        held = [row for one in places if one.holds(name) for row in range(*one.rows(name, rows))]
        assert all(held.count(row) == places[0].copies(name) for row in range(rows))
