"""Pulse: the shortest product counts, each core has its own, and torch's threads are as they were."""

from __future__ import annotations

import torch

from leanseek.pulse import TIMES, Pulse


def test_every_core_has_a_product():
    torch.set_num_threads(2)
    try:
        seconds = Pulse(3).seconds()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert len(seconds) == 3 and min(seconds) > 0


def test_the_shortest_product_counts():
    times = iter([0.0, 5.0, 10.0, 12.0, *(x for n in range(TIMES) for x in (20.0 * n + 20, 20.0 * n + 27))])
    assert Pulse(1, lambda: next(times)).seconds() == [2.0]
