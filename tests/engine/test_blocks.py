"""Blocks: a count that never loses one."""

from __future__ import annotations

import random

import pytest

from leanseek.engine.blocks import Blocks
from leanseek.errors import EngineError


def test_the_lowest_free_blocks_are_given_and_come_back():
    blocks = Blocks(4, 16)
    assert blocks.take(3) == [0, 1, 2] and blocks.free == 1
    blocks.release([1])
    assert blocks.take(1) == [1] and blocks.free == 1
    assert [blocks.needed(n) for n in (0, 1, 16, 17)] == [0, 1, 1, 2]


def test_a_block_is_free_when_its_last_holder_lets_go():
    blocks = Blocks(2, 16)
    blocks.take(1)
    blocks.share([0])
    blocks.release([0])
    assert blocks.holders(0) == 1 and blocks.free == 1
    blocks.release([0])
    assert blocks.free == 2
    with pytest.raises(AssertionError):
        blocks.release([0])


def test_whatever_holders_do_the_count_is_theirs():
    rng, blocks = random.Random(0), Blocks(20, 4)
    held: list[list[int]] = []
    for _ in range(500):
        choice = rng.random()
        if choice < 0.4 and blocks.free >= 3:
            held.append(blocks.take(rng.randint(1, 3)))
        elif choice < 0.6 and held:
            shared = rng.choice(held)[:2]
            blocks.share(shared)
            held.append(list(shared))
        elif held:
            blocks.release(held.pop(rng.randrange(len(held))))
        blocks.check_integrity(held)


@pytest.mark.parametrize(
    ("held", "message"), [([[0]], "block 1 .* counted 1 times and held 0"), ([[0, 1], [1]], "held 2 times")]
)
def test_what_is_lost_is_found_out(held, message):
    blocks = Blocks(3, 4)
    blocks.take(2)
    with pytest.raises(EngineError, match=message):
        blocks.check_integrity(held)
