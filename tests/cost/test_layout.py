"""Layouts are read as they are written, and those that cannot be are told why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leanseek.cost.layout import Layout, obstacle, parse_layout
from leanseek.errors import UsageError
from leanseek.model.config import load_preset


def test_a_layout_is_read_back_as_written():
    layout = parse_layout("pp=16, ep=64,schedule=dualpipe,precision=fp8,recompute=full,zero=3,micro=2")
    assert (layout.pp, layout.ep, layout.schedule, layout.recompute, layout.zero) == (16, 64, "dualpipe", "full", 3)
    assert parse_layout(layout.text) == layout
    assert parse_layout("tp=2", layout) == replace(layout, tp=2)
    assert layout.overlaps and not replace(layout, pp=1).overlaps


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pp", "is not part of a layout"),
        ("shedule=1f1b", "did you mean schedule"),
        ("pp=0", "a whole number from 1"),
        ("pp=two", "a whole number from 1"),
        ("zero=2", "0, 1 or 3"),
        ("schedule=dualpip", "did you mean dualpipe"),
        ("recompute=some", "accepted are none, selective, full"),
    ],
)
def test_what_is_no_layout_is_told(text, said):
    with pytest.raises(UsageError, match=said):
        parse_layout(text)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dp": 64}, "1024 devices, not 2048"),
        ({"ep": 96}, "does not divide the 128 devices"),
        ({"dp": 2048, "pp": 1, "ep": 512}, "does not divide 256 experts"),
        ({"tp": 3, "pp": 1, "dp": 2048}, "6144 devices"),
        ({"micro": 7}, "is not a multiple of dp x micro"),
        ({"pp": 64, "dp": 32, "ep": 32}, "more stages than 61 layers"),
        ({"micro": 8}, "needs an even pipeline"),
        ({}, None),
    ],
)
def test_layouts_that_cannot_be(changes, said):
    layout = replace(Layout(pp=16, ep=64, dp=128, schedule="dualpipe"), **changes)
    found = obstacle(load_preset("deepseek-v3"), layout, 2048, 15360)
    assert found is None if said is None else said in (found or "")
