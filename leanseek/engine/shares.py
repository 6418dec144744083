"""Shares: how a batch is dealt to engines that work side by side. No torch: plans count by it too."""

from __future__ import annotations

# Samples that an engine must have to be worth a thread: between small operations threads wait for each other's
# turn in the interpreter. With 256 samples two engines are slower than one, with 512 they are 1.4 times as fast.
LEAST_SAMPLES = 160


def engines_for(samples: int, engines: int) -> int:
    """Return how many of some engines take part in drawing so many samples."""
    return max(1, min(engines, samples // LEAST_SAMPLES))


def rows_of(max_batch: int, engines: int) -> int:
    """Return how many samples each of some engines draws at once, so that all have room for `max_batch`."""
    return max(-(-max_batch // engines), min(max_batch, 2 * LEAST_SAMPLES - 1))
