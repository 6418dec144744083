"""Weights are those that `model.count` counts; what is shared is there once."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leanseek.cost.layout import Layout
from leanseek.cost.memory import Weights, device_memory, layer_weights, vocabulary_weights
from leanseek.model.config import load_preset, preset_names
from leanseek.model.count import parameters


@pytest.mark.parametrize("name", preset_names())
@pytest.mark.parametrize("ep", [1, 8])
def test_the_weights_are_all_that_are_counted(name, ep):
    config, counted, layout = load_preset(name), parameters(load_preset(name)), Layout(ep=ep)
    held = [layer_weights(config, layout, layer) for layer in range(config.num_hidden_layers)]
    assert sum(one.experts for one in held) * ep == counted.routed_experts
    shared = sum(one.shared for one in held) + 2 * vocabulary_weights(config, layout).shared
    # Norms are left out.
    assert shared == pytest.approx(counted.total - counted.routed_experts, rel=2e-3)


def test_what_is_shared_is_there_once():
    config, own = load_preset("deepseek-v3"), Weights(1e9, 2e9)
    base = Layout(pp=16, ep=64, dp=128, precision="bf16")

    def of(**changes):
        return device_memory(config, replace(base, **changes), own, 5e9, 4096, False, 80e9)

    # 128 replicas share the optimiser of what is no expert, 2 that of experts.
    assert of().optimiser == pytest.approx((1e9 / 128 + 2e9 / 2) * 12)
    assert of(zero=0).optimiser == pytest.approx(3e9 * 12)
    assert of().weights == 6e9 and of().gradients == 12e9 and of().activations == 5e9
    assert of(zero=3).weights == pytest.approx((1e9 / 128 + 1e9) * 2)
    assert of(precision="fp8").weights == 3e9
    assert of().total == pytest.approx(sum(value for key, value in of().as_dict().items() if key != "total"))
