"""Blocks: which pieces of the cache are free, and how many hold on to each of the others."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence

from leanseek.errors import EngineError


class Blocks:
    """Hands out blocks of the cache, the lowest numbers first, and counts who holds them.

    Args:
        count: blocks there are.
        tokens: tokens that a block has room for.
    """

    def __init__(self, count: int, tokens: int) -> None:
        self.count, self.tokens = count, tokens
        self._holders = [0] * count
        self._free = list(range(count))  # a heap

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def needed(self, tokens: int) -> int:
        """Return how many blocks a text of so many tokens takes."""
        return -(-tokens // self.tokens)

    def holders(self, block: int) -> int:
        """Return how many hold a block."""
        return self._holders[block]

    def take(self, count: int) -> list[int]:
        """Give `count` free blocks to one holder; the caller has seen that there are enough."""
        assert count <= len(self._free), "callers make room first"
        taken = [heapq.heappop(self._free) for _ in range(count)]
        for block in taken:
            self._holders[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """Count one more holder of each block."""
        for block in blocks:
            assert self._holders[block] > 0, "only what is held can be shared"
            self._holders[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Count one holder less of each block; what nobody holds any more is free."""
        for block in blocks:
            assert self._holders[block] > 0, "what is free cannot be released"
            self._holders[block] -= 1
            if not self._holders[block]:
                heapq.heappush(self._free, block)

    def check_integrity(self, held: Sequence[Iterable[int]]) -> None:
        """Compare the count with what the holders say they hold.

        Args:
            held: per holder, its blocks.
        Raises:
            EngineError: a block is lost, or held more or less often than it is counted.
        """
        said = Counter(block for blocks in held for block in blocks)
        free = set(self._free)
        if len(free) != len(self._free):
            raise EngineError("a block of the cache is free twice")
        for block, count in enumerate(self._holders):
            if count != said[block]:
                raise EngineError(f"block {block} of the cache is counted {count} times and held {said[block]} times")
            if (count == 0) != (block in free):
                raise EngineError(f"block {block} of the cache is lost: nobody holds it, and it is not free")
