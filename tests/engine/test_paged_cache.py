"""PagedCache: blocks anywhere read as one text; whole texts in order are read without a copy."""

from __future__ import annotations

import random

import pytest
import torch

from leanseek.engine.paged_cache import PagedCache
from leanseek.model.cache import CacheSpec, ContiguousCache
from leanseek.model.segments import Segments

SPECS = [CacheSpec("latent", 3, "float32")] * 2


def latents(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("block_tokens", [1, 4, 7, 40])
def test_it_reads_as_the_contiguous_cache_does(block_tokens):
    """Prefill, chunks and single tokens of three texts, their blocks dealt at random."""
    count = -(-40 // block_tokens)
    paged = PagedCache(SPECS, 3 * count + 2, block_tokens)
    plain = ContiguousCache(SPECS, 3, 40)
    order = list(range(3 * count + 2))
    random.Random(block_tokens).shuffle(order)
    tables = [order[row * count : (row + 1) * count] for row in range(3)]
    paged.clear(order)
    paged.use(tables)
    done = (0, 0, 0)
    for step, lengths in enumerate([(9, 2, 13), (1, 5, 2), (1, 1, 1), (6, 1, 1)]):
        segments = Segments(lengths, cached_lengths=done)
        for layer in range(2):
            new = latents(sum(lengths), 10 * step + layer)
            paged.write(layer, new, segments)
            plain.write(layer, new, segments)
        done = tuple(a + b for a, b in zip(done, lengths, strict=True))
        for layer in range(2):
            got, wanted = paged.read(layer, max(done), segments), plain.read(layer, max(done), segments)
            assert got.shape == wanted.shape
            for row, length in enumerate(done):
                assert torch.equal(got[row, :length], wanted[row, :length])
            assert bool(torch.isfinite(got).all())
    for row, length in enumerate(done):
        pages = paged.store[1, paged.pages(3)[row]].flatten(0, 1)
        assert torch.equal(pages[:length], plain.read(1, length, Segments((1,) * 3))[row])


def test_whole_texts_in_order_are_views():
    cache = PagedCache(SPECS, 4, 20)
    cache.reserve(8)
    cache.use([[0], [1]])
    cache.write(0, latents(5), Segments((4, 1)))
    read = cache.read(0, 4, Segments((4, 1)))
    assert read.data_ptr() == cache.store.data_ptr() and torch.equal(read[0], latents(5)[:4])
    assert cache.pages(2).tolist() == [[0], [1]]


def test_what_nobody_wrote_is_finite_once_it_is_reserved_or_cleared():
    """Masked places have weight zero, and zero times NaN would still be NaN."""
    cache = PagedCache(SPECS, 2, 200)
    cache.store.fill_(float("nan"))
    cache.reserve(70)
    cache.use([[0], [1]])
    assert bool(torch.isfinite(cache.read(0, 70, Segments((70, 1)))).all())
    small = PagedCache(SPECS, 3, 4)
    small.store.fill_(float("nan"))
    small.clear([2])
    assert bool(torch.isfinite(small.store[:, 2]).all()) and bool(torch.isnan(small.store[:, 1]).all())
    small.store[:, 2] = float("nan")
    small.clear([2])
    assert bool(torch.isnan(small.store[:, 2]).all()), "only what is new is cleared, unless it is broken"
    small.clear([2], again=True)
    assert bool(torch.isfinite(small.store[:, 2]).all())


def test_copies_hold_the_same_in_every_layer():
    cache = PagedCache(SPECS, 3, 4)
    cache.store.normal_()
    before = cache.store.clone()
    cache.copy([0, 1], [1, 2], 2)
    assert torch.equal(cache.store[:, 1, :2], before[:, 0, :2]) and torch.equal(cache.store[:, 2, :2], before[:, 1, :2])
    assert torch.equal(cache.store[:, 1:, 2:], before[:, 1:, 2:])
    assert PagedCache.bytes_per_token(SPECS) == 2 * 3 * 4
