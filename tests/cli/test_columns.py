from __future__ import annotations

from leanseek.cli.columns import columns


def test_cells_stand_under_each_other():
    assert columns([("a", "bb", "c"), ("aaa", "b", "")], right=[1]) == "a    bb  c\naaa   b"
