"""What a run is held to, and what it is told where trainer and engine differ."""

from __future__ import annotations

import math

import pytest

from leanseek.errors import RunError
from leanseek.rl.agreement import agreement_of
from leanseek.sections.grpo import GrpoSettings

FINE = {"step": 3, "logprob_gap": 7e-5, "logprob_gap_mean": 1e-7, "routing_agreement": 1.0}


def test_the_worst_of_the_rows_is_told():
    rule = agreement_of(GrpoSettings(), "float32")
    rows = [FINE, FINE | {"logprob_gap": 9e-4, "routing_agreement": 0.99995}, {"step": 5, "reward": 0.0}]
    assert rule.check(rows) == {"logprob_gap": 9e-4, "routing_agreement": 0.99995}
    assert rule.check([]) == {}


@pytest.mark.parametrize(
    "wrong", [{"logprob_gap": 2e-3}, {"logprob_gap": math.nan}, {"routing_agreement": 0.99}, {"logprob_gap_mean": 0.1}]
)
def test_a_bound_that_is_passed_ends_the_run(wrong):
    (name,) = wrong
    with pytest.raises(RunError, match=f"step 3: {name} is .*the trainer does not compute what the engine sampled"):
        agreement_of(GrpoSettings(), "float32").check([FINE | wrong])


def test_near_ties_are_few_over_a_run():
    rule, tie = agreement_of(GrpoSettings(), "float32"), FINE | {"routing_agreement": 0.9997}
    assert rule.check([FINE] * 7 + [tie] * 3)["routing_agreement"] == 0.9997
    assert rule.check([tie] * 9)["routing_agreement"] == 0.9997, "too few to tell"
    with pytest.raises(RunError, match=r"10 steps: routing_agreement_mean is 0\.9997, at least 0\.9999"):
        rule.check([tie] * 10)


def test_bf16_and_routing_that_is_not_replayed_are_held_to_the_mean():
    loose = FINE | {"logprob_gap": 0.7, "routing_agreement": 0.98}
    for settings, dtype in ((GrpoSettings(), "bfloat16"), (GrpoSettings(replay_routing=False), "float32")):
        rule = agreement_of(settings, dtype)
        assert rule.check([loose])["logprob_gap"] == 0.7
        with pytest.raises(RunError, match="logprob_gap_mean"):
            rule.check([loose | {"logprob_gap_mean": 0.1}])
