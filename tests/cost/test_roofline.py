"""Products are those that `model.count` counts; nothing is faster than the device."""

from __future__ import annotations

import pytest

from leanseek.cost.hardware import hardware
from leanseek.cost.layers import score_products
from leanseek.cost.machines import parse_machines
from leanseek.cost.roofline import BF16_SHARE, FP8_SHARE, Roofline, layer_products
from leanseek.model.config import load_preset, preset_names
from leanseek.model.count import causal_pairs, forward_flops

H800 = Roofline(hardware("h800"), "fp8")


@pytest.mark.parametrize("name", preset_names())
def test_the_products_are_all_that_is_counted(name):
    config = load_preset(name)
    products = sum(
        one.multiplications for layer in range(config.num_hidden_layers) for one in layer_products(config, layer)
    )
    pairs = causal_pairs([100])
    scores = config.num_hidden_layers * pairs * score_products(config)
    head = config.vocab_size * config.hidden_size
    assert 2 * (100 * (products + head) + scores) == forward_flops(config, tokens=100, pairs=pairs)


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
@pytest.mark.parametrize(
    ("rows", "outer", "inner", "groups"), [(4096, 7168, 2048, 1), (1, 4096, 7168, 8), (300, 576, 99, 3)]
)
def test_no_product_is_faster_than_the_device(precision, rows, outer, inner, groups):
    share = FP8_SHARE if precision == "fp8" else BF16_SHARE
    at_best = 2 * rows * outer * inner * groups / (hardware("h800").peak_flops(precision) * share)
    assert H800.product_s(rows, outer, inner, groups, precision) >= at_best * (1 - 1e-9)
    weights = groups * outer * inner * (1 if precision == "fp8" else 2)
    assert H800.product_s(rows, outer, inner, groups, precision) >= weights / 3350e9


def test_few_rows_wait_for_weights_and_many_for_units():
    few, more = (H800.product_s(rows, 7168, 7168) for rows in (1, 32))
    assert more == pytest.approx(few, rel=0.1)
    many, twice = (H800.product_s(rows, 7168, 7168) for rows in (8192, 16384))
    assert twice == pytest.approx(2 * many, rel=0.02)
    assert Roofline(hardware("h800"), "fp8", 0.5).product_s(8192, 7168, 7168) == pytest.approx(2 * many, rel=0.05)


def test_a_machine_that_was_measured_is_as_fast_as_it_was():
    cores = parse_machines("2xvirtual-cpu").device
    assert Roofline(cores, "fp32").product_s(1000, 1000, 1000) == pytest.approx(2e9 / cores.fp32_flops)
    assert Roofline(cores, "fp32").memory_s(cores.memory_bytes_per_s) == pytest.approx(1)
    assert Roofline(cores, "fp32").network_s(0) == 0 and Roofline(cores, "fp32").network_s(1) == float("inf")
