"""The learning-rate schedule: warm-up, flat part, cosine, constant tail."""

from __future__ import annotations

import itertools

import pytest

from leanseek.sections.training import TrainSettings
from leanseek.train.schedules import balance_rate, batch_sequences, lr_factor, mtp_weight, sequences_before


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


def test_the_constant_tail_may_have_two_parts():
    got = factors(3000, decay_fraction=0.3, final_lr_fraction=0.1, last_lr_fraction=0.033, warmup_fraction=0.0)
    assert got[2910:2970] == pytest.approx([0.1] * 60) and got[2970:] == [0.033] * 30


def test_the_batch_grows_linearly_and_the_position_follows_from_the_step_alone():
    settings = TrainSettings(steps=100, batch_sequences=50, ramp_from=10, ramp_fraction=0.2)
    sizes = [batch_sequences(step, 100, settings) for step in range(100)]
    assert sizes[0] == 10 and sizes[10] == 30 and sizes[20:] == [50] * 80
    assert all(after >= before for before, after in itertools.pairwise(sizes))
    assert [sequences_before(step, 100, settings) for step in range(101)] == [sum(sizes[:n]) for n in range(101)]
    assert sequences_before(7, 100, TrainSettings(batch_sequences=50)) == 350


def test_v3s_balance_rate_ends_and_its_mtp_weight_falls():
    settings = TrainSettings(steps=100, balance_until=0.9, late_mtp_weight=0.1, late_mtp_from=0.5)
    assert {balance_rate(step, 100, settings) for step in range(90)} == {1e-3}
    assert {balance_rate(step, 100, settings) for step in range(90, 100)} == {0.0}
    assert [mtp_weight(step, 100, settings) for step in (0, 49, 50, 99)] == [0.3, 0.3, 0.1, 0.1]
    assert mtp_weight(99, 100, TrainSettings()) == 0.3


@pytest.mark.parametrize("values", [{"ramp_from": 8}, {"late_mtp_weight": 0.1}])
def test_what_follows_from_the_step_needs_their_number(values):
    with pytest.raises(ValueError, match="needs steps, not minutes"):
        TrainSettings(minutes=1.0, **values)


def test_a_batch_cannot_grow_downwards():
    with pytest.raises(ValueError, match="at most batch_sequences = 8"):
        TrainSettings(steps=4, batch_sequences=8, ramp_from=9)
