"""A grammar's trial: what is wrong is told, and what never ends or needs too much is stopped."""

from __future__ import annotations

import time

import pytest

from leanseek.engine.trial import MOST_CPU_S, objection

VOCABULARY = {"size": 300, "specials": {0: "<end>", 1: "<mark>", 299: "<last>"}, "eos_ids": [0]}


def test_a_good_grammar_passes() -> None:
    assert objection("regex", r"\d{3}-\w+", **VOCABULARY) == ""
    assert objection("lark", 'start: "a" <[1]> <mark> %json {"type": "object"} <[299]>', **VOCABULARY) == ""


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("regex", "(a", "unclosed group"),
        ("regex", r"(a)\1", "backreferences"),
        ("lark", "start: <nobody>", "unknown special token"),
        ("lark", "start: <[300]>", "too large"),
        ("lark", 'start: %json {"type": "odd"}', "Invalid type: odd"),
        ("lark", "start: " + "(" * 9000 + '"a"' + ")" * 9000, "too deeply nested"),
    ],
)
def test_what_is_wrong_is_told(kind: str, text: str, reason: str) -> None:
    assert reason in objection(kind, text, **VOCABULARY)


def test_what_would_kill_the_process_or_never_end_is_stopped() -> None:
    deep = "start: r0\n" + "\n".join(f"r{i}: r{i + 1}" for i in range(20000)) + '\nr20000: "a"'
    assert "nests too deeply" in objection("lark", deep, **VOCABULARY)
    started = time.perf_counter()
    endless = "start: A\nA: " + "&".join(f"/.*{i}.*/" for i in range(6000))
    assert f"more than {MOST_CPU_S} s" in objection("lark", endless, **VOCABULARY)
    assert time.perf_counter() - started < 30
