from __future__ import annotations

import itertools
import random

import pytest

from leanseek.evals.proportion import Proportion, pass_at_k, wilson


def test_wilson_gives_the_published_intervals():
    # Newcombe 1998 (Statistics in Medicine 17), table I, method 3.
    for right, count, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        one = Proportion.of(right, count)
        assert one.interval == pytest.approx((low, high), abs=1e-4)
    assert Proportion.of(29, 29).interval == pytest.approx((0.8830, 1.0), abs=1e-4)


def test_nothing_is_known_of_none():
    assert Proportion.of(0, 0) == Proportion(0.0, 0, (0.0, 1.0)) == Proportion.mean([])


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = random.Random(0)
    for truth in (0.05, 0.5, 0.9):
        held = 0
        for _ in range(2000):
            low, high = Proportion.of(sum(rng.random() < truth for _ in range(100)), 100).interval
            held += low <= truth <= high
        assert 0.93 < held / 2000 < 0.98


def test_a_mean_of_yes_and_no_is_a_proportion():
    one, other = Proportion.mean([1.0] * 30 + [0.0] * 70), Proportion.of(30, 100)
    assert one.share == other.share and one.interval == pytest.approx(other.interval)


def test_values_that_spread_less_give_a_narrower_interval():
    narrow, wide = Proportion.mean([0.4, 0.6] * 50).interval, Proportion.mean([0.0, 1.0] * 50).interval
    assert narrow[1] - narrow[0] < 0.3 * (wide[1] - wide[0])
    assert Proportion.mean([1.0] * 20).interval == wilson(1.0, 20)


def test_a_proportion_says_itself():
    assert str(Proportion.of(1, 2)) == "50.0% (9.5% to 90.5%, n = 2)"


@pytest.mark.parametrize(("samples", "right"), [(4, 0), (4, 1), (4, 3), (4, 4), (6, 2)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(samples: int, right: int):
    replies = [True] * right + [False] * (samples - right)
    for k in range(1, samples + 1):
        draws = [any(draw) for draw in itertools.combinations(replies, k)]
        assert pass_at_k(samples, right, k) == pytest.approx(sum(draws) / len(draws))
