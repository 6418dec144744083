"""How far tokens travel agrees with drawing experts at random."""

from __future__ import annotations

import random

import pytest

from leanseek.cost.exchange import direct_exchange_s, exchange_s, reach
from leanseek.cost.hardware import hardware
from leanseek.cost.roofline import Roofline
from leanseek.model.config import load_preset

V3 = load_preset("deepseek-v3")
ROOF = Roofline(hardware("h800"), "fp8")


def drawn(config, ep: int, per_node: int, times: int = 4000) -> tuple[float, float]:
    """Route tokens as node-limited routing does, at random; return other devices and other nodes met."""
    rng = random.Random(0)
    size, devices, nodes = config.n_routed_experts // config.n_group, 0, 0
    for _ in range(times):
        groups = rng.sample(range(config.n_group), config.topk_group)
        experts = rng.sample([g * size + e for g in groups for e in range(size)], config.num_experts_per_tok)
        met = {expert * ep // config.n_routed_experts for expert in experts}
        own = rng.randrange(ep)
        nodes += len({one // per_node for one in met} - {own // per_node})
        devices += len(met)
    return devices / times, nodes / times


@pytest.mark.parametrize("ep", [2, 4, 8, 16, 32, 64])
def test_tokens_travel_as_far_as_at_random(ep):
    found = reach(V3, ep, 8)
    devices, nodes = drawn(V3, ep, 8)
    # Whole groups are counted as met, though now and then none of a group's experts is chosen.
    assert found.nodes == pytest.approx(nodes, rel=0.15, abs=0.01)
    assert found.devices == pytest.approx(devices * (1 - 1 / min(ep, 8)), rel=0.2)


def test_node_limited_routing_bounds_the_nodes():
    assert reach(V3, 64, 8).nodes == 4 * 7 / 8
    assert reach(V3, 1, 8) == reach(load_preset("laptop"), 1, 8)
    assert reach(V3, 8, 8).nodes == 0


def test_seconds_are_those_of_the_slower_network():
    # 4,096 tokens of 7,168, a byte there and two back, to 3.5 other nodes, on 45 GB/s.
    assert exchange_s(V3, ROOF, 4096, 64) == pytest.approx(4096 * 7168 * 3 * 3.5 / 45e9)
    assert exchange_s(V3, ROOF, 4096, 8) < exchange_s(V3, ROOF, 4096, 64) / 3
    assert exchange_s(V3, ROOF, 4096, 1) == direct_exchange_s(V3, ROOF, 4096, 1) == 0
    assert direct_exchange_s(V3, ROOF, 64, 144) == pytest.approx(64 * 7168 * 3 * 8 * (1 - 8 / 144) / 45e9)
