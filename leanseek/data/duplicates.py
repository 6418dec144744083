"""NearDuplicates: whether a document is nearly one that was seen before, in memory that is fixed at the start.

MinHash signatures of runs of five words (the library rensa), parted into bands; two documents that agree in a band are
taken for duplicates. Bands seen are kept in a Bloom filter, which needs some bits a band whatever the documents'
length, and may, rarely, take a new document for a known one: `false_positive` says how rarely.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanseek.errors import DataError

WORDS = 5
# 14 bands of 8: documents whose runs of words overlap by 72% are as likely found as not, by 85% nearly always.
# FineWeb's choice (Penedo et al. 2024, arXiv 2406.17557).
BANDS, ROWS = 14, 8
SMALLEST_BITS, LARGEST_BITS = 1 << 20, 1 << 32
# With so many bits and probes, all bands of a new document together are taken for known once in ten thousand times.
BITS_A_BAND, PROBES = 32, 8
_WORD = re.compile(r"\w+")


class NearDuplicates:
    """Documents seen so far.

    Args:
        expected: how many are to come, about; with more, false positives grow.
        seed: of the hash functions.
    Raises:
        DataError: rensa is not installed.
    """

    def __init__(self, expected: int, seed: int = 0) -> None:
        self.bands = Bands(seed)
        wanted = max(SMALLEST_BITS, min(LARGEST_BITS, BITS_A_BAND * BANDS * expected))
        self.bits = 1 << (wanted - 1).bit_length()
        self._filter = np.zeros(self.bits // 8, dtype=np.uint8)

    def seen(self, keys: NDArray[np.uint64]) -> bool:
        """Whether any band of a document was seen before; they are from now on."""
        step = (keys >> np.uint64(33)) | np.uint64(1)
        places = (keys + np.arange(PROBES, dtype=np.uint64)[:, None] * step) & np.uint64(self.bits - 1)
        at, bit = places >> np.uint64(3), np.uint8(1) << (places & np.uint64(7)).astype(np.uint8)
        known = (self._filter[at] & bit) != 0
        np.bitwise_or.at(self._filter, at, bit)
        return bool(known.all(axis=0).any())

    @property
    def false_positive(self) -> float:
        """The chance that a document like no other is taken for a duplicate, by now."""
        share = float(np.bitwise_count(self._filter).sum(dtype=np.int64)) / self.bits
        return 1 - (1 - share**PROBES) ** BANDS


class Bands:
    """A document's bands: what is alike in documents that are alike.

    Args:
        seed: of the hash functions.
    Raises:
        DataError: rensa is not installed.
    """

    def __init__(self, seed: int) -> None:
        try:
            self._rensa: Any = importlib.import_module("rensa")
        except ImportError:
            raise DataError("--deduplicate needs rensa: pip install 'leanseek[data]'") from None
        self.seed = seed

    def __call__(self, text: str) -> NDArray[np.uint64]:
        """Return a document's bands, a number each; [BANDS]."""
        words = _WORD.findall(text.lower())
        runs = {" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1))}
        signature = self._rensa.RMinHash(num_perm=BANDS * ROWS, seed=self.seed)
        signature.update(sorted(runs))
        rows = np.array(signature.digest(), dtype=np.uint64).reshape(BANDS, ROWS)
        mixed = np.arange(1, BANDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        for column in rows.T:  # FNV's way, over whole numbers
            mixed = (mixed ^ column) * np.uint64(0x100000001B3)
            mixed ^= mixed >> np.uint64(29)
        return mixed
