"""The streaming core: stops are found however the text is cut, and nothing is held back that need not be."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leanseek.tokens.stream import Source, Trimmed


def told(text: str, cuts: list[int], stops: tuple[str, ...]) -> tuple[str, list[str]]:
    """Return what `until` hands on, and the stops it meets, of a text that arrives in pieces."""
    source, said, met = Source(frozenset()), list[str](), list[str]()

    def read():
        while stop := (yield from source.until(stops, said.append)):
            met.append(stop)
            said.append("|")

    reading = read()
    next(reading, None)
    ends = sorted({0, *(cut for cut in cuts if cut < len(text)), len(text)})
    for start, end in itertools.pairwise(ends):
        source.feed(text[start:end])
        next(reading, None)
    source.end()
    next(reading, None)
    return "".join(said), met


@given(
    text=st.text("abc", max_size=30),
    cuts=st.lists(st.integers(1, 30)),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3, unique=True).map(tuple),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_stops_are_found_alike_in_any_pieces(text, cuts, stops):
    whole, met = told(text, [], stops)
    assert told(text, cuts, stops) == (whole, met)
    assert whole.count("|") == len(met)
    rest = iter(met)
    assert "".join(next(rest) if c == "|" else c for c in whole) == text


@pytest.mark.parametrize("ending", ["\n", "\n```"])
@given(pieces=st.lists(st.text("\n`a", max_size=4), max_size=6))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_one_ending_is_trimmed(ending, pieces):
    said: list[str] = []
    trimmed = Trimmed(said.append, ending)
    for piece in pieces:
        trimmed(piece)
    trimmed.close()
    assert "".join(said) == "".join(pieces).removesuffix(ending)
