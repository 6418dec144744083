"""Who has what: every row of every parameter is somewhere, as often as it should be, and what cannot be is refused."""

from __future__ import annotations

import pytest

from leanseek.errors import ConfigError
from leanseek.sections.training import ParallelSettings
from leanseek.train.places import Place, check, check_batch, least_ranks, share

EXPERTS, DENSE = "model.layers.1.mlp.experts.down_proj", "model.norm.weight"


@pytest.mark.parametrize(
    ("world", "settings"),
    [
        (2, {}),
        (4, {"shards": 2}),
        (8, {"experts": 4, "shards": 2}),
        (16, {"experts": 2, "shards": 8}),
        (8, {"shards": 8}),
    ],
)
def test_every_row_is_held_as_often_as_there_are_copies(world, settings):
    places = [Place(rank, world, ParallelSettings(**settings)) for rank in range(world)]
    for name, rows in ((EXPERTS, 8), (DENSE, 13)):
        held = [row for place in places for row in range(*place.rows(name, rows))]
        assert all(held.count(row) == places[0].copies(name) for row in range(rows))


def test_shares_are_cut_as_torch_cuts():
    assert [share(13, 4, index) for index in range(4)] == [(0, 4), (4, 8), (8, 12), (12, 13)]
    assert [share(2, 4, index) for index in range(4)] == [(0, 1), (1, 2), (2, 2), (2, 2)]


@pytest.mark.parametrize(
    ("world", "settings", "message"),
    [
        (3, {"experts": 3}, "does not divide the model's 8 routed experts"),
        (4, {"experts": 3}, "experts = 3 does not divide 4 ranks; start a multiple of 3"),
        (6, {"shards": 4}, "shards = 4 does not divide"),
        (6, {"shards": 3, "experts": 2}, "one must be a multiple of the other"),
        (1, {"experts": 2}, "torchrun --nproc-per-node 2 -m -- leanseek"),
        (4, {"ranks": 8}, "parallel.ranks = 8, but there are 4"),
        (4, {"pipeline": 3}, "pipeline = 3 does not divide 4 ranks; start a multiple of 3"),
        (6, {"pipeline": 2, "experts": 2}, "experts = 2 does not divide 3 ranks of each part of the pipeline"),
        (4, {"pipeline": 4}, "cuts the model into 4 parts, but it has 3 layers"),
        (2, {"pipeline": 2, "schedule": "zbv"}, "schedule zbv cuts the model into 4 parts"),
    ],
)
def test_what_cannot_be_is_refused_in_words(tiny_config, world, settings, message):
    with pytest.raises(ConfigError, match=message):
        check(ParallelSettings(**settings), world, tiny_config)


def test_the_least_number_of_ranks_follows_from_what_is_shared():
    assert least_ranks(ParallelSettings(experts=4, shards=2)) == 4
    assert least_ranks(ParallelSettings(ranks=16, experts=4)) == 16


def test_a_batch_that_does_not_fill_the_pipeline_is_refused_in_words():
    settings = ParallelSettings(pipeline=2, schedule="dualpipev")
    check_batch(settings, 4, 8)
    with pytest.raises(ConfigError, match=r"needs 4 texts a step for each of 2 ranks .* raise it to 8"):
        check_batch(settings, 4, 7)
