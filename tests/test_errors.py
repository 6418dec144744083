"""The exception tree: what its docstring draws is what there is."""

from __future__ import annotations

import re

import leanseek.errors as errors
from leanseek.errors import ConfigError, LeanseekError, RunError, UsageError, nearest


def test_the_drawing_shows_every_class_under_its_parent():
    drawn, path = {}, []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"([│├└─ ]*)(\w+Error)\b", line):
            depth = len(match[1]) // 4
            path = [*path[:depth], match[2]]
            drawn[match[2]] = path[depth - 1] if depth else "Exception"
    real = {
        name: kind.__bases__[0].__name__
        for name, kind in vars(errors).items()
        if isinstance(kind, type) and issubclass(kind, Exception)
    }
    assert drawn == real


def test_wrong_usage_ends_with_status_2_and_other_failures_with_1():
    assert (LeanseekError.exit_status, RunError.exit_status) == (1, 1)
    assert (UsageError.exit_status, ConfigError.exit_status) == (2, 2)


def test_the_nearest_name_is_offered_only_when_it_is_near():
    assert nearest("peak_lrr", ["steps", "peak_lr"]) == "; did you mean peak_lr?"
    assert nearest("model", ["steps", "peak_lr"]) == "" and nearest("a", iter([])) == ""
