"""Mixture: windows of several corpora, each drawn as often as its weight says; which, follows from the step."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from leanseek.data.batches import Batch, TokenStream, window_batch

# Windows of a block, in which each corpus has its exact share; weights are rounded to one of so many.
BLOCK = 1024


class Mixture:
    """Windows of several streams; what the n-th is follows from n alone, so that a run resumes anywhere.

    In each block of `BLOCK` windows every stream has its share, in an order drawn for that block.

    Args:
        streams: one for each corpus; their lengths of a window are the same.
        weights: how often each is drawn, in any unit.
        seed: of the order.
    """

    def __init__(self, streams: Sequence[TokenStream], weights: Sequence[float], seed: int) -> None:
        self.streams, self.seed = list(streams), seed
        self.rows = streams[0].rows
        whole = sum(weights)
        exact = [BLOCK * weight / whole for weight in weights]
        # The largest remainders get what rounding down leaves; each has one window at least.
        self.shares = [max(1, int(share)) for share in exact]
        for at in sorted(range(len(exact)), key=lambda i: self.shares[i] - exact[i]):
            if sum(self.shares) == BLOCK:
                break
            self.shares[at] += 1
        while sum(self.shares) > BLOCK:
            self.shares[self.shares.index(max(self.shares))] -= 1
        # Until the corpus that is read through first (for its weight) is at its end.
        per_pass = (BLOCK * s.batches_per_pass * s.rows / n for s, n in zip(self.streams, self.shares, strict=True))
        self.batches_per_pass = max(1, int(min(per_pass) / self.rows))
        self._block: tuple[int, list[tuple[int, int]]] | None = None

    def batch(self, step: int) -> Batch:
        """Return the batch of a step; the same step always gives the same batch."""
        return self.take(step * self.rows, self.rows)

    def take(self, first: int, count: int) -> Batch:
        """Return `count` windows from a place in the order of all; the same place always gives the same."""
        drawn = [self.origin(place) for place in range(first, first + count)]
        rows = torch.empty(count, self.streams[0].length + 2, dtype=torch.int64)
        for at, stream in enumerate(self.streams):
            mine = [i for i, (which, _) in enumerate(drawn) if which == at]
            if mine:
                rows[mine] = stream.read(drawn[i][1] for i in mine)
        return window_batch(rows, self.streams[0].bos_id, self.streams[0].masked)

    def origin(self, place: int) -> tuple[int, int]:
        """Return which stream the window at a place is of, and its place in that stream."""
        block, at = divmod(place, BLOCK)
        if self._block is None or self._block[0] != block:
            order = [i for i, share in enumerate(self.shares) for _ in range(share)]
            random.Random(f"mixture/{self.seed}/{block}").shuffle(order)
            used = [block * share for share in self.shares]
            found = []
            for which in order:
                found.append((which, used[which]))
                used[which] += 1
            self._block = (block, found)
        return self._block[1][at]
