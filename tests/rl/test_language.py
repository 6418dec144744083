"""Language consistency: the share of words in the wanted script."""

from __future__ import annotations

import pytest

from leanseek.errors import ConfigError
from leanseek.messages import Message
from leanseek.rl.language import consistency, scripts_of


@pytest.mark.parametrize(
    ("thinking", "answer", "language", "share"),
    [
        ("first add two and two", "4", "en", 1.0),
        ("first add 二 and 二", "4", "en", 0.6),
        ("сначала сложим two", "4", "ru", 2 / 3),
        ("因为 所以", "four", "zh", 2 / 3),
        ("たす と 足す", "", "ja", 1.0),
        ("2 + 2 = 4", "4", "zh", 1.0),
        ("", "", "en", 1.0),
        ("ok \ufffd\ufffd", "", "en", 1 / 3),
        ("mixed слoво", "", "en", 0.5),  # the second word has letters of two scripts
        ("cafe\u0301 d\u00e9j\u00e0", "x2", "fr", 1.0),  # accents apart or not, and digits in a word
    ],
)
def test_words_of_another_script_count_against_it(thinking, answer, language, share):
    assert consistency(Message("assistant", answer, thinking), language) == pytest.approx(share)


def test_a_language_that_is_not_known_is_told():
    with pytest.raises(ConfigError, match=r"grpo\.language = 'eng' is not known; did you mean en\?; have ar, de"):
        scripts_of("eng")
