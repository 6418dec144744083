from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanseek.envs.expressions import exact, is_number, same


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3/4", "3/4"),
        ("0.75", "3/4"),
        ("-7", "-7"),
        (".5", "1/2"),
        (r"\frac{3}{4}", "3/4"),
        (r"\boxed{12}", "12"),
        ("$12$", "12"),
        ("1,234,567", "1234567"),
        ("2^-2", "1/4"),
        ("-2^2", "-4"),
        ("2**3^2", "512"),
        ("1 + 2 * 3", "7"),
        (r"3 \times (4 - 2)", "6"),
        ("\u22125", "-5"),
    ],
)
def test_values_are_exact(text: str, value: str):
    assert exact(text) == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1/0",
        "1 2",
        "x",
        "9**9**9",
        "2^65",
        "(" * 100 + "1" + ")" * 100,
        "1,23",
        "٣",
        "½",
        "1e5",
        "5=",
        "5,",
        "--",
        "nan",
        "9" * 201,
        "0^-1",
        "1..2",
        "sqrt",
        "sqrt 2",
        "()",
        "\x00",
        "7 or so",
        "(9^64)^64",
        "sqrt(2)",
    ],
)
def test_what_is_no_number_has_no_value(text: str):
    assert exact(text) is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x+1", "1+x"),
        ("(x+1)^2", "x^2+2x+1"),
        (r"\frac{\sqrt{2}}{2}", "1/sqrt(2)"),
        (r"2\sqrt{3}", "sqrt(12)"),
        (r"2\pi", "6.0 * pi / 3"),
        ("2x(y+1)", "2xy + 2x"),
        ("so", "so"),
    ],
)
def test_expressions_are_the_same_where_their_values_are(one: str, other: str):
    assert same(one, other) and same(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x+1", "x"),
        ("x", "y"),
        ("sqrt(2)", "1.41421356237"),
        ("pi", "3.14159265358979"),
        ("x-x+1+y", "1"),
        ("so", "that"),
    ],
)
def test_and_differ_where_they_do_not(one: str, other: str):
    assert not same(one, other)


def test_a_number_is_told_from_what_is_still_to_be_computed():
    assert all(map(is_number, ["3", "-3", "3/4", "-3/4", "0.5", r"\frac{3}{4}", "1,000"]))
    assert not any(map(is_number, ["1+2", "2*3", "3/4/5", "x", "2^3", "", "0.5/2", "sqrt(4)", "pi"]))


@given(text=st.text(max_size=250) | st.text("0123456789+-*/^().x \\{}$,sqrtpi", max_size=220))
@settings(max_examples=300, deadline=2000, derandomize=True)
def test_any_text_can_be_given(text: str):
    exact(text), is_number(text)
    assert same(text, text)
    same(text, "x + 1")
