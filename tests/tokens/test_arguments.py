"""Arguments: an object is taken apart and put together again without changing a value's text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanseek.errors import UsageError
from leanseek.tokens.arguments import dumps, is_json, items, joined, quote, value_of
from tests.tokens.hostile import OBJECTS, VALUES


@given(values=OBJECTS, indent=st.none() | st.integers(0, 2))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_an_objects_items_are_its_own_text(values, indent):
    text = json.dumps(values, indent=indent)
    pairs = items(f" {text}\n")
    assert pairs is not None and {key: json.loads(value) for key, value in pairs} == values
    assert all(value in text for _, value in pairs)
    assert json.loads(joined(pairs)) == values


@given(value=VALUES)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_only_objects_have_items(value):
    text = json.dumps(value)
    assert is_json(text) and (items(text) is not None) == isinstance(value, dict)


BROKEN = '{|{"a"}|{"a": }|{"a": 1,}|{"a": 1 "b": 2}|{1: 2}|{"a": 1} b|{"a": NaN}|{,}'.split("|")


@pytest.mark.parametrize("text", ["", *BROKEN, "[" * 99_999])
def test_what_is_no_json_has_none(text):
    assert items(text) is None and not is_json(text)


def test_the_last_of_two_counts_and_long_numbers_are_kept():
    assert items('{"a": 1, "b": 2, "a": 3.10}') == [("a", "3.10"), ("b", "2")]
    assert items('{"a": ' + "9" * 9000 + "}") == [("a", "9" * 9000)]


def test_strings_have_no_needless_escapes():
    assert quote('é"\n') == '"é\\"\\n"'
    assert quote("\ud800") == '"\\ud800"' and value_of('"\\ud800"') == "\ud800"


def test_what_is_no_json_value_cannot_be_a_schema():
    assert dumps({"a": "é"}) == '{"a": "é"}'
    with pytest.raises(UsageError, match="must be JSON values"):
        dumps({"a": {1}})
