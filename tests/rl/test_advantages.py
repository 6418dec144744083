"""Advantages: mean zero, spread one, and none where there is nothing to compare."""

from __future__ import annotations

import statistics

import pytest

from leanseek.rl.advantages import group_advantages


def test_advantages_are_rewards_in_units_of_the_groups_spread():
    assert group_advantages([1.0, 0.0, 0.0, 0.0]) == pytest.approx([3**0.5, *[-(3**-0.5)] * 3])
    assert group_advantages([1.0, 0.0]) == pytest.approx([1.0, -1.0])


@pytest.mark.parametrize("rewards", [[1.1, 0.1, 0.0, 1.0, 0.1], [0.3, 0.2], [5.0, -5.0, 1.0]])
def test_their_mean_is_zero_and_their_spread_one_in_the_same_order(rewards):
    found = group_advantages(rewards)
    assert statistics.fmean(found) == pytest.approx(0.0, abs=1e-12)
    assert statistics.pstdev(found) == pytest.approx(1.0)
    assert sorted(range(len(found)), key=found.__getitem__) == sorted(range(len(rewards)), key=rewards.__getitem__)
    assert group_advantages([10 * reward + 3 for reward in rewards]) == pytest.approx(found)


@pytest.mark.parametrize("rewards", [[0.0] * 4, [1.0] * 4, [0.1 + 0.2, 0.3], [0.7]])
def test_equal_rewards_teach_nothing(rewards):
    assert group_advantages(rewards) is None


def test_centred_is_not_divided():
    assert group_advantages([1.0, 0.0, 0.0, 0.0], normalise=False) == [0.75, -0.25, -0.25, -0.25]
    assert group_advantages([0.5, 0.5], normalise=False) is None
