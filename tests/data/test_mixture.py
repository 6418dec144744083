"""A mixture: exact shares, every window of each corpus in its turn, and a place that follows from the step."""

from __future__ import annotations

from collections import Counter

import torch

from leanseek.data.batches import TokenStream
from leanseek.data.mixture import BLOCK, Mixture


def streams() -> list[TokenStream]:
    """Three corpora whose tokens tell them apart."""
    return [TokenStream(torch.arange(n * 1000, n * 1000 + 402), 8, 5, n) for n in (1, 2, 3)]


def test_each_block_has_each_corpus_as_often_as_its_weight_says():
    mixture = Mixture(streams(), [0.5, 0.3, 0.2], 0)
    for block in (0, 1, 7):
        origins = [mixture.origin(block * BLOCK + i) for i in range(BLOCK)]
        counts = Counter(which for which, _ in origins)
        assert counts == {0: 512, 1: 307, 2: 205}
        for which in counts:
            places = [place for origin, place in origins if origin == which]
            assert places == list(range(block * counts[which], (block + 1) * counts[which]))
    assert [mixture.origin(i)[0] for i in range(50)] != [mixture.origin(BLOCK + i)[0] for i in range(50)]


def test_a_rare_corpus_is_drawn_and_shares_add_up():
    for weights in ([1, 1e-9, 1e-9], [1, 1, 1], [3.3, 1.1, 7.7]):
        shares = Mixture(streams(), weights, 0).shares
        assert sum(shares) == BLOCK and min(shares) >= 1


def test_any_batch_is_the_same_whatever_was_read_before_and_however_it_is_parted():
    mixture, fresh = Mixture(streams(), [1, 2, 3], 4), Mixture(streams(), [1, 2, 3], 4)
    read = [mixture.batch(step) for step in range(600)]
    assert torch.equal(fresh.batch(433).tokens_T, read[433].tokens_T)
    halves = [fresh.take(433 * 5, 2).tokens_T, fresh.take(433 * 5 + 2, 3).tokens_T]
    assert torch.equal(torch.cat(halves), read[433].tokens_T)
    assert read[0].tokens_T.shape == (40,) and torch.equal(read[0].targets_T[:-1][:7], read[0].tokens_T[1:8])
