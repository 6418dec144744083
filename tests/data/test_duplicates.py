"""Near duplicates: found where much is the same, not where little is, and never forgotten."""

from __future__ import annotations

import random

import pytest

from leanseek.data.duplicates import BANDS, LARGEST_BITS, NearDuplicates

pytest.importorskip("rensa", reason="near duplicates need rensa: pip install 'leanseek[data]'")


def text(rng: random.Random, words: int = 400) -> list[str]:
    return [f"w{rng.randrange(5000)}" for _ in range(words)]


def changed(words: list[str], rng: random.Random, count: int) -> list[str]:
    words = list(words)
    for at in rng.sample(range(len(words)), count):
        words[at] = "other"
    return words


def test_what_is_nearly_the_same_is_found_and_what_is_not_is_kept():
    rng = random.Random(0)
    documents = [text(rng) for _ in range(100)]
    known = NearDuplicates(1000)
    assert not any(known.seen(known.bands(" ".join(words))) for words in documents)
    assert all(known.seen(known.bands(" ".join(words))) for words in documents)
    # 4 of 400 words changed: 20 of 396 runs differ on each side, an overlap of 90%.
    near = sum(known.seen(known.bands(" ".join(changed(words, rng, 4)))) for words in documents)
    # 80 changed: hardly a run is left.
    far = sum(known.seen(known.bands(" ".join(changed(words, rng, 80)))) for words in documents)
    assert near >= 90 and far <= 3


def test_case_and_punctuation_do_not_hide_it():
    known = NearDuplicates(10)
    assert not known.seen(known.bands("The cat sat on the mat, and slept."))
    assert known.seen(known.bands("the cat sat on the mat and slept"))


def test_short_and_empty_texts_are_taken():
    known = NearDuplicates(10)
    assert known.bands("").shape == known.bands("one").shape == (BANDS,)
    assert not known.seen(known.bands("one")) and known.seen(known.bands("One!"))


def test_its_memory_is_bounded_and_its_error_known():
    assert NearDuplicates(1).bits == 1 << 20
    assert LARGEST_BITS // 8 == 512 << 20
    known = NearDuplicates(2300)
    assert known.bits == 1 << 20
    rng = random.Random(1)
    assert not any(known.seen(known.bands(" ".join(text(rng, 50)))) for _ in range(2300))
    assert 0 < known.false_positive < 2e-4
