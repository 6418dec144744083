"""The contiguous cache: rows, places, and what an unwritten place holds."""

from __future__ import annotations

import pytest
import torch

from leanseek.model.cache import CacheSpec, ContiguousCache
from leanseek.model.segments import Segments

SPECS = [CacheSpec("latent", 3, "float32")] * 2


def latents(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, 3, generator=torch.Generator().manual_seed(seed))


def test_what_is_written_is_read_at_its_position():
    cache = ContiguousCache(SPECS, rows=3, capacity=10)
    first, second = latents(5), latents(2, 1)
    cache.write(0, first, Segments((4, 1)))
    cache.write(0, second, Segments((1, 1), cached_lengths=(4, 1)))
    read = cache.read(0, 5, Segments((1, 1), cached_lengths=(4, 1)))
    assert torch.equal(read[0], torch.cat((first[:4], second[:1])))
    assert torch.equal(read[1, :2], torch.stack((first[4], second[1])))
    assert cache.pages(2).tolist() == [[0], [1]], "a row is a page"


def test_layers_are_apart():
    cache = ContiguousCache(SPECS, rows=1, capacity=4)
    cache.write(0, latents(2), Segments((2,)))
    cache.write(1, latents(2, 1), Segments((2,)))
    assert torch.equal(cache.read(0, 2, Segments((2,)))[0], latents(2))
    assert torch.equal(cache.read(1, 2, Segments((2,)))[0], latents(2, 1))


def test_a_place_that_nobody_wrote_holds_a_finite_number():
    """Masked places have weight zero, and zero times NaN would still be NaN."""
    cache = ContiguousCache(SPECS, rows=2, capacity=20)
    assert bool(torch.isfinite(cache.read(0, 20, Segments((1, 1)))).all())


@pytest.mark.parametrize(("name", "dtype"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_it_keeps_the_dtype_asked_for(name, dtype):
    cache = ContiguousCache([CacheSpec("latent", 3, name)], rows=1, capacity=4)
    cache.write(0, latents(2), Segments((2,)))
    assert cache.read(0, 2, Segments((2,))).dtype == dtype
