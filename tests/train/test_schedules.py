"""The learning-rate schedule: warm-up, flat part, cosine, constant tail."""

from __future__ import annotations

import itertools

import pytest

from leanseek.settings import TrainSettings
from leanseek.train.schedules import lr_factor


def factors(steps: int, **values: float) -> list[float]:
    settings = TrainSettings(**values)
    return [lr_factor(step, steps, settings) for step in range(steps)]


def test_its_shape_is_v3s():
    got = factors(1000, warmup_fraction=0.1, decay_fraction=0.3, final_lr_fraction=0.2)
    assert got[:100] == pytest.approx([(step + 1) / 100 for step in range(100)])
    assert set(got[100:701]) == {1.0}
    decaying = got[700:971]
    assert all(after < before for before, after in itertools.pairwise(decaying))
    assert got[835] == pytest.approx(0.6), "half way down the cosine, half way between 1 and the end"
    assert got[970:] == pytest.approx([0.2] * 30), "the last tenth of the decay is constant"


def test_it_is_always_a_share_of_the_peak():
    for steps in (1, 2, 3, 7, 50):
        for warmup in (0.0, 0.5, 0.99):
            for decay in (0.0, 0.5, 1.0):
                got = factors(steps, warmup_fraction=warmup, decay_fraction=decay, final_lr_fraction=0.1)
                assert all(0 < factor <= 1 for factor in got)


def test_without_decay_it_stays_at_the_peak():
    assert factors(20, warmup_fraction=0.0, decay_fraction=0.0) == [1.0] * 20


def test_it_may_go_down_to_nothing():
    assert factors(100, decay_fraction=1.0, final_lr_fraction=0.0, warmup_fraction=0.0)[-1] == 0.0


def test_a_stage_resumed_late_goes_on_at_the_tail():
    settings = TrainSettings(final_lr_fraction=0.1)
    assert lr_factor(2000, 1000, settings) == pytest.approx(0.1)
