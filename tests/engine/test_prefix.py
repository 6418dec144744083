"""Prefixes: the longest known beginning, against a search through all texts; and what makes way for what."""

from __future__ import annotations

import random

import pytest

from leanseek.engine.blocks import Blocks
from leanseek.engine.prefix import Prefixes


def make(count: int = 32, tokens: int = 4) -> tuple[Blocks, Prefixes]:
    blocks = Blocks(count, tokens)
    return blocks, Prefixes(blocks)


def keep(blocks: Blocks, prefixes: Prefixes, ids: list[int], scope: str = "") -> list[int]:
    """Store a text as a row that then leaves; return the blocks it had."""
    taken = blocks.take(blocks.needed(len(ids)))
    prefixes.keep(scope, ids, taken)
    blocks.release(taken)
    return taken


def test_a_text_is_found_to_the_token():
    blocks, prefixes = make()
    text = list(range(10))
    taken = keep(blocks, prefixes, text)
    assert len(prefixes) == 3 and blocks.free == 29
    for length in range(1, 14):
        asked = [*text[:length], *[99] * (14 - length)][:14]
        match = prefixes.find("", asked, len(asked) - 1)
        assert match.tokens == min(length, 10)
        assert [node.block for node in match.nodes] == taken[: min(length, 10) // 4]
    assert prefixes.find("", text, 9).tokens == 9, "never more than is asked for"
    assert prefixes.find("", [5, *text], 10).tokens == 0


def test_scopes_see_nothing_of_each_other():
    blocks, prefixes = make()
    keep(blocks, prefixes, list(range(8)), "one")
    assert prefixes.find("one", list(range(8)), 8).tokens == 8
    assert prefixes.find("other", list(range(8)), 8).tokens == 0
    assert prefixes.find("", list(range(8)), 8).tokens == 0


def test_a_text_that_grows_in_its_block_is_kept_once():
    blocks, prefixes = make()
    taken = blocks.take(2)
    prefixes.keep("", [1, 2, 3], taken)
    prefixes.keep("", [1, 2, 3, 4, 5, 6], taken)
    assert len(prefixes) == 2 and blocks.holders(taken[0]) == 2
    assert prefixes.find("", [1, 2, 3, 4, 5, 6, 7], 6).tokens == 6
    blocks.release(taken)
    blocks.check_integrity([prefixes.held])


def test_what_was_used_longest_ago_makes_room_and_what_others_hold_stays():
    blocks, prefixes = make(count=4)
    first = keep(blocks, prefixes, [1, 2, 3, 4])
    keep(blocks, prefixes, [5, 6, 7, 8])
    held = keep(blocks, prefixes, [9, 10, 11, 12])
    blocks.share(held)
    assert prefixes.find("", [1, 2, 3, 4, 0], 4).tokens == 4, "used again: the second is the oldest now"
    assert prefixes.make_room(2)
    assert prefixes.find("", [5, 6, 7, 8, 0], 4).tokens == 0
    assert [node.block for node in prefixes.find("", [1, 2, 3, 4, 0], 4).nodes] == first
    assert prefixes.make_room(3) and not prefixes.make_room(4)
    assert prefixes.find("", [9, 10, 11, 12, 0], 4).tokens == 4


def test_a_beginning_stays_as_long_as_what_follows_it():
    blocks, prefixes = make(count=4)
    keep(blocks, prefixes, list(range(12)))
    assert prefixes.make_room(2)
    assert prefixes.find("", list(range(12)), 11).tokens == 8, "the end went first"


def test_what_is_broken_is_forgotten_with_all_that_follows():
    blocks, prefixes = make()
    taken = keep(blocks, prefixes, list(range(12)))
    prefixes.distrust([taken[1], 31])
    assert prefixes.find("", list(range(12)), 11).tokens == 4 and blocks.free == 31
    prefixes.clear()
    assert len(prefixes) == 0 and blocks.free == 32


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_what_a_search_through_all_texts_finds(seed):
    rng = random.Random(seed)
    blocks, prefixes = make(count=400, tokens=3)
    texts: list[list[int]] = []
    for _ in range(60):
        known = rng.choice(texts) if texts and rng.random() < 0.7 else []
        ids = known[: rng.randint(0, len(known))] + [rng.randint(0, 2) for _ in range(rng.randint(1, 9))]
        found = prefixes.find("", ids, len(ids))
        common = [
            next((i for i, (a, b) in enumerate(zip(t, ids, strict=False)) if a != b), min(len(t), len(ids)))
            for t in texts
        ]
        assert found.tokens == max(common, default=0)
        keep(blocks, prefixes, ids)
        texts.append(ids)
        blocks.check_integrity([prefixes.held])
