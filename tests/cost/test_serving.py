"""Faster replies cost more; longer texts cost more; what has no room is told."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from leanseek.cost.machines import parse_machines
from leanseek.cost.planner import config_of
from leanseek.cost.service import Service, decode_s, prefill_s, weights_bytes
from leanseek.cost.serving import plan_serving
from leanseek.errors import UsageError
from leanseek.model.count import parameters

MACHINES = parse_machines("1800xh800")
SERVICE = Service(config_of("deepseek-v3"))


def test_faster_replies_cost_more():
    found = plan_serving(SERVICE, MACHINES)
    for slow, fast in pairwise(reversed(found.rates)):
        assert fast.user_tokens_per_s > slow.user_tokens_per_s
    assert found.chosen.device_tokens_per_s == max(rate.device_tokens_per_s for rate in found.rates)
    asked = plan_serving(SERVICE, MACHINES, speed=40)
    assert asked.chosen.user_tokens_per_s >= 40 and asked.chosen.usd_per_million > found.chosen.usd_per_million
    assert found.rates[-1].texts == found.most_texts


def test_costs_are_the_prices_share():
    whole, half = (plan_serving(SERVICE, MACHINES, busy=busy) for busy in (1.0, 0.5))
    assert half.chosen.usd_per_million == pytest.approx(2 * whole.chosen.usd_per_million)
    assert whole.chosen.usd_per_million == pytest.approx(2 / 3600 * 1e6 / whole.chosen.device_tokens_per_s)
    cached = plan_serving(replace(SERVICE, hits=0.75), MACHINES)
    assert cached.prefill_tokens_per_s == pytest.approx(4 * half.prefill_tokens_per_s)


def test_work_grows_with_what_there_is_to_do():
    assert decode_s(SERVICE, MACHINES, 64, 8192) > decode_s(SERVICE, MACHINES, 64, 128)
    assert decode_s(SERVICE, MACHINES, 128, 128) > decode_s(SERVICE, MACHINES, 64, 128)
    assert prefill_s(SERVICE, MACHINES, 65536) > prefill_s(SERVICE, MACHINES, 4096)
    sparse = replace(SERVICE, config=config_of("deepseek-v3.2"))
    assert prefill_s(sparse, MACHINES, 65536) < prefill_s(SERVICE, MACHINES, 65536) / 2
    # Drafts make a step longer, but not as much longer as they bring.
    drafting = replace(SERVICE, accepted=0.85, decode_ep=8)
    plain = replace(SERVICE, decode_ep=8)
    assert decode_s(plain, MACHINES, 8, 4096) < decode_s(drafting, MACHINES, 8, 4096)
    assert decode_s(drafting, MACHINES, 8, 4096) < 1.85 * decode_s(plain, MACHINES, 8, 4096)


def test_weights_are_all_of_them_between_the_devices():
    counted = parameters(SERVICE.config)
    alone = weights_bytes(replace(SERVICE, decode_ep=1, precision="bf16"))
    assert alone == 2 * counted.total
    shared = weights_bytes(replace(SERVICE, decode_ep=64, precision="bf16"))
    assert alone - shared == 2 * counted.routed_experts * 63 / 64


def test_what_cannot_be_is_told():
    with pytest.raises(UsageError, match="leave no room"):
        plan_serving(replace(SERVICE, decode_ep=8), MACHINES)
    with pytest.raises(UsageError, match="decodes one text alone"):
        plan_serving(SERVICE, MACHINES, speed=1e6)
    with pytest.raises(UsageError, match="busy"):
        plan_serving(SERVICE, MACHINES, busy=0)
