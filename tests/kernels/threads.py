"""Threads: what the same work gives on different numbers of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch


def assert_threads_change_no_bit(work: Callable[[], Sequence[torch.Tensor]]) -> None:
    """Do the work with one thread and with three, and see that every tensor is equal to the bit."""
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(work())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
