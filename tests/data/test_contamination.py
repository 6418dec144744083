"""Contamination: what was planted is found, whatever its spacing; what only resembles is not."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from leanseek.data.contamination import WORDS, contamination

LONG = "a train leaves at nine with forty people and at each of three stops it loses a fifth of them"
SHORT = "start 5 step +3 -2 total"


def test_what_was_planted_is_found():
    documents = ["nothing here", f"before. {SHORT.upper().replace(' ', '   ')} think aloud", "more"]
    found = contamination([LONG, SHORT], documents)
    assert (found.problems, found.found, found.documents) == (2, 1, 3) and found.examples == (SHORT,)


def test_thirteen_words_in_a_row_are_enough_and_twelve_are_not():
    words = LONG.split()
    for count, expected in ((WORDS, 1), (WORDS - 1, 0)):
        part = " ".join(words[2 : 2 + count])
        assert contamination([LONG], [f"so {part} then"]).found == expected
    # All of a short one is needed.
    assert contamination([SHORT], [SHORT.rsplit(" ", 1)[0]]).found == 0


def test_signs_inside_a_word_count_and_those_around_it_do_not():
    assert contamination(["1 + 2 - 3"], ["1 - 2 + 3", "1 + 2 3"]).found == 0
    assert contamination(["3+6-2"], ["3+6-2+1 total", "13+6-2"]).found == 0
    assert contamination(["Is it (nine)?"], ["is it nine."]).found == 1


def test_nothing_to_look_for_and_nowhere():
    assert contamination([], ["a"]).found == 0
    assert contamination(["a b c", ""], []).documents == 0
    assert contamination(["", "a"], ["a"]).found == 1


@given(st.integers(0, 2**32), st.integers(1, 20), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_as_a_search_word_by_word_finds_it(seed, longest, words):
    rng = random.Random(seed)
    alphabet = "abc"
    held_out = [" ".join(rng.choices(alphabet, k=rng.randint(1, longest))) for _ in range(4)]
    documents = [" ".join(rng.choices(alphabet, k=rng.randint(1, 30))) for _ in range(4)]
    expected = 0
    for text in held_out:
        spoken = text.split()
        size = min(words, len(spoken))
        grams = [f" {' '.join(spoken[at : at + size])} " for at in range(len(spoken) - size + 1)]
        expected += any(gram in f" {document} " for gram in grams for document in documents)
    assert contamination(held_out, documents, words).found == expected
