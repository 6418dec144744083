"""Rollouts wait for the longest reply; sampling and training share the devices as suits them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leanseek.cost.layout import parse_layout
from leanseek.cost.learning import Learning, alive, plan_learning
from leanseek.cost.machines import parse_machines
from leanseek.cost.planner import config_of
from leanseek.errors import UsageError

MACHINES = parse_machines("512xh800")
LAYOUT = parse_layout("pp=16,ep=8,schedule=zb1p,precision=fp8,recompute=full")
TASK = Learning(config_of("deepseek-v3"), 100, 512, 16, 200, 8000, 32768)


def test_replies_are_as_long_as_stated():
    width = TASK.longest / 20000
    mean = sum(alive(TASK, (n + 0.5) * width) * width for n in range(20000))
    assert mean == pytest.approx(TASK.reply, rel=1e-3)
    assert alive(TASK, 0) == 1 and alive(TASK, TASK.longest) == 0


def test_the_longest_reply_is_waited_for():
    short = plan_learning(TASK, MACHINES, LAYOUT)
    long = plan_learning(replace(TASK, longest=65536), MACHINES, LAYOUT)
    assert long.sample_s > short.sample_s
    assert short.rounds == 100 / 16 and short.hours == pytest.approx(short.rounds * short.round_s / 3600)
    assert short.usd == pytest.approx(2 * short.device_hours)


def test_side_by_side_neither_waits_long_for_the_other():
    found = plan_learning(TASK, MACHINES, LAYOUT)
    assert found.split is not None and found.sample_s == pytest.approx(found.train_s, rel=0.3)
    assert found.round_s == max(found.sample_s, found.train_s)
    assert found.as_dict()["sampling_share_of_devices"] == found.split


def test_one_device_does_both_in_turn():
    found = plan_learning(
        Learning(config_of("laptop"), 10, 64, 1, 20, 60, 100, precision="fp32"), parse_machines("2xvirtual-cpu")
    )
    assert found.split is None and found.round_s == found.sample_s + found.train_s and found.hours > 0


def test_drafts_that_are_right_make_sampling_faster():
    few = replace(TASK, outputs=32)
    assert (
        plan_learning(replace(few, accepted=0.85), MACHINES, LAYOUT).sample_s
        < plan_learning(few, MACHINES, LAYOUT).sample_s
    )


def test_what_cannot_be_is_told():
    with pytest.raises(UsageError, match="shorter than the longest"):
        plan_learning(replace(TASK, reply=40000), MACHINES, LAYOUT)
    with pytest.raises(UsageError, match="at least 1"):
        plan_learning(replace(TASK, steps=0), MACHINES, LAYOUT)
