"""Spikes: which steps are skipped, and when that is too many."""

from __future__ import annotations

import math

import pytest

from leanseek.errors import RunError
from leanseek.train.spikes import LEAST_SEEN, MOST_IN_A_ROW, Spikes


def seen(factor: float = 3.0, norms: int = LEAST_SEEN) -> Spikes:
    spikes = Spikes(factor)
    assert not any(spikes.is_one(1.0) for _ in range(norms))
    return spikes


def test_what_is_far_above_the_mean_is_one_and_does_not_move_the_mean():
    spikes = seen()
    assert not spikes.is_one(2.9)
    mean = spikes.mean
    assert spikes.is_one(3.0 * mean + 0.1) and spikes.mean == mean
    assert not spikes.is_one(1.0)


def test_at_first_only_what_is_not_finite_is_one():
    spikes = seen(norms=3)
    assert spikes.is_one(math.nan) and spikes.is_one(math.inf)
    assert not spikes.is_one(1000.0)
    assert spikes.mean == pytest.approx((3 + 1000) / 4)


def test_too_many_in_a_row_end_the_stage():
    spikes = seen()
    for _ in range(MOST_IN_A_ROW - 1):
        assert spikes.is_one(math.nan)
    with pytest.raises(RunError, match="10 steps in a row had to be skipped"):
        spikes.is_one(50.0)


def test_its_state_goes_on_as_if_never_stopped():
    one, other = seen(), Spikes(3.0)
    one.is_one(99.0)
    other.load_state_dict(one.state_dict())
    assert other.state_dict() == one.state_dict() and other.is_one(3.5) == one.is_one(3.5)
