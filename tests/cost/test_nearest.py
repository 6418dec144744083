"""Nearest: what is found fits, differs from what was asked, and by no more than it must."""

from __future__ import annotations

import pytest

from leanseek.cost.nearest import nearest_fit
from leanseek.cost.planner import plan


@pytest.mark.parametrize(
    ("model", "on", "layout"),
    [
        ("deepseek-v3", "2048xh800", "pp=8,ep=64,schedule=dualpipe,micro=2"),
        ("deepseek-v2", "64xh100", "pp=4,ep=8,schedule=1f1b,recompute=none"),
        ("deepseek-v2-lite", "4xh100", "ep=1,recompute=none,zero=0"),
    ],
)
def test_what_is_nearest_fits(model, on, layout):
    asked = plan(model, on, "1T", layout=layout)
    assert not asked.fits
    found = nearest_fit(asked)
    assert found is not None and found.fits and found.layout != asked.layout
    kept = ("precision",)
    assert all(getattr(found.layout, name) == getattr(asked.layout, name) for name in kept)
    changed = [n for n in ("pp", "ep", "tp", "micro", "zero", "recompute", "schedule")
               if getattr(found.layout, n) != getattr(asked.layout, n)]  # fmt: skip
    assert 1 <= len(changed) <= 3


def test_where_nothing_is_near_there_is_none():
    assert nearest_fit(plan("deepseek-v3", "h800", "1T", layout="ep=1")) is None
