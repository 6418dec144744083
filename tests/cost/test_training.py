"""A step's parts sum to the step; more of anything costs more."""

from __future__ import annotations

import pytest

from leanseek.cost.layers import kept_bytes, layer_times, vector_bytes
from leanseek.cost.layout import Layout, parse_layout
from leanseek.cost.machines import parse_machines
from leanseek.cost.planner import config_of, plan
from leanseek.cost.roofline import Roofline
from leanseek.cost.step import Work, stages
from leanseek.cost.training import RUN_SHARE, plan_training
from leanseek.errors import UsageError
from leanseek.model.count import training_flops_per_token

V3 = config_of("deepseek-v3")


@pytest.mark.parametrize(
    ("on", "layout"),
    [
        ("2048xh800", "pp=16,ep=64,schedule=dualpipe"),
        ("2048xh800", "pp=8,ep=64,schedule=dualpipev"),
        ("2048xh800", "pp=16,ep=8,schedule=zb1p"),
        ("2048xh800", "pp=16,ep=8,tp=2,schedule=1f1b,recompute=full"),
        ("512xb200", "pp=1,ep=64,zero=3"),
    ],
)
def test_the_parts_are_the_step(on, layout):
    found = plan("deepseek-v3", on, "1T", layout=layout)
    assert sum(found.parts_s.values()) == pytest.approx(found.step_s, rel=0.01)
    assert found.parts_s["all that is not modelled"] == pytest.approx((1 - RUN_SHARE) * found.step_s)
    assert all(seconds >= 0 for seconds in found.parts_s.values())


def test_hours_money_and_energy_are_those_of_the_speed():
    found = plan("deepseek-v3", "2048xh800", 10**12, layout="pp=16,ep=64,schedule=dualpipe", price="$3/h")
    assert found.hours == pytest.approx(10**12 / (15360 * 4096) * found.step_s / 3600)
    assert found.usd == pytest.approx(3 * found.device_hours) and found.days == found.hours / 24
    assert found.joules == pytest.approx(found.device_hours * 700 * 3600)
    flops = found.tokens_per_device_s * training_flops_per_token(V3, 4096)
    assert found.mfu == pytest.approx(flops / 989.4e12)
    assert found.as_dict()["memory_per_device_bytes"]["total"] == found.memory_per_device_bytes


def test_every_layer_is_in_a_stage():
    work, layout = Work(V3, 1, 15360), Layout(pp=16, ep=64, dp=128, schedule="dualpipe", precision="fp8")
    times, weights = stages(work, layout, Roofline(parse_machines("h800").device, "fp8"))
    assert len(times) == len(weights) == 16
    assert sum(one.experts for one in weights) * 64 == pytest.approx((58 + 1) * 256 * 3 * 7168 * 2048)


def test_recomputing_trades_seconds_for_memory():
    roof = Roofline(parse_machines("h800").device, "fp8")
    kept = [kept_bytes(V3, 9, recompute, "fp8") for recompute in ("none", "selective", "full")]
    again = [
        layer_times(V3, Layout(ep=64, recompute=one), roof, 9, 4096).again for one in ("none", "selective", "full")
    ]
    assert kept == sorted(kept, reverse=True) and again == sorted(again) and again[0] == 0
    assert vector_bytes(V3, 9, "fp8") > vector_bytes(V3, 9, "bf16")


def test_more_devices_are_faster_and_fp8_is_faster_than_bf16():
    plans = [plan("deepseek-v3", f"{n}xh800", "1T", layout="pp=16,ep=64,schedule=dualpipe") for n in (1024, 2048)]
    assert plans[1].hours < plans[0].hours
    bf16 = plan("deepseek-v3", "2048xh800", "1T", layout="pp=16,ep=64,schedule=dualpipe,precision=bf16")
    assert 1.1 < bf16.step_s / plans[1].step_s < 2


def test_devices_without_a_network_wait_for_ever():
    work = Work(config_of("laptop"), 10**6, 16, 128)
    found = plan_training(work, parse_machines("2xvirtual-cpu"), parse_layout("precision=fp32"))
    assert found.machines.count == 1 and 1e2 < found.tokens_per_device_s < 1e6 and found.usd is None


def test_a_layout_that_cannot_be_is_told():
    with pytest.raises(UsageError, match="has no FP8 products"):
        plan("deepseek-v3", "2048xa100", "1T", layout="pp=16,ep=64,schedule=dualpipe,precision=fp8")
    with pytest.raises(UsageError, match=r"does not divide the 128 devices"):
        plan("deepseek-v3", "2048xh800", "1T", layout="pp=16,ep=96")
