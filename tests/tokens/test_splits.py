"""Splits: where V2's and V3's tokenizers cut a text."""

from __future__ import annotations

import pytest

from leanseek.tokens.splits import splits

TEXT = "Don't stop: été, 漢字가나 x12345!\r\n  end\t"


@pytest.mark.parametrize(
    ("style", "pieces"),
    [
        ("v2", "Don|'|t| stop|:| é|t|é|,| |漢字가나| x|1|2|3|4|5|!|\r|\n| | end|\t"),
        ("v3", "Don|'t| stop|:| été|,| |漢字|가나| x|123|45|!\r\n| | end|\t"),
    ],
)
def test_a_text_is_cut_as_deepseek_cuts_it(style, pieces):
    places = [place for _, place in splits(style).pre_tokenize_str(TEXT)]
    assert "|".join(TEXT[start:end] for start, end in places) == pieces


def test_letters_are_those_with_two_cases():
    """V2's way; scripts without capitals stay with what is beside them, and ẞ is in the CJK class too."""
    cut = [place for _, place in splits("v2").pre_tokenize_str("ΑβЖжẞﬀ𐐀 אב")]
    assert cut == [(0, 4), (4, 5), (5, 7), (7, 10)]
